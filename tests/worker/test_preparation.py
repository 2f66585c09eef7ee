"""Requests between the socket and the engine: none is lost, none is ended twice."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mlxd.core.clock import stamp
from mlxd.core.request import GenerationRequest, Message, Sampling
from mlxd.ipc.messages import (
    Accepted,
    Cancel,
    Cancelled,
    Ended,
    Generate,
    Output,
    Ping,
    Pong,
    Refused,
    Text,
    Up,
)
from mlxd.worker import preparation, threads
from mlxd.worker.intake import Intake
from mlxd.worker.job import Job
from mlxd.worker.preparation import LARGE_BYTES
from mlxd.worker.refusal import Refusal
from mlxd.worker.stops import StopStrings

REQUEST = GenerationRequest(model="m", text="x")
OWN = GenerationRequest(model="m", messages=(Message("user", "x"),), template="{{ messages }}")
Work = Callable[[int], None]


class Wire:
    def __init__(self) -> None:
        self.sent: list[Up] = []

    def send(self, message: Up) -> None:
        self.sent.append(message)

    def ends(self) -> list[tuple[str, int]]:
        """All that ended a request, in order."""
        told: list[tuple[str, int]] = []
        for message in list(self.sent):
            if isinstance(message, Refused):
                told.append(("refused", message.id))
            if isinstance(message, Output):
                told += [("cancelled", p.id) for p in message.pieces if isinstance(p, Cancelled)]
        return told


class Scene:
    """An intake without its threads: `work` is what preparing a request takes."""

    def __init__(self, work: Work = lambda id: None) -> None:
        self.wire = Wire()
        link: Any = self.wire
        self.intake = Intake(link)
        self.preparation = self.intake.preparation
        checks: Any = self
        self.preparation.checks = checks
        self.work = work
        self.rendering: Work = lambda id: None
        self.told: dict[int, str | None] = {}
        """What a client's template made of each."""

    def written(self, generate: Generate) -> str:
        self.rendering(generate.id)
        return f"written {generate.id}"

    def job_of(self, generate: Generate, written: str | None = None) -> Job:
        self.work(generate.id)
        self.told[generate.id] = written
        return Job(generate.id, REQUEST, Sampling(), [1], 1, False, StopStrings(()))

    def prompt_of(self, generate: Generate, written: str | None = None) -> tuple[str, list[int]]:
        self.work(generate.id)
        return "x", [1, 2]

    def ask(self, *ids: int, size: int = 100, request: GenerationRequest = REQUEST) -> None:
        for id in ids:
            self.intake.handle(Generate(id, request, Sampling(), 9, 9, 9), size)

    def cancel(self, id: int) -> None:
        self.intake.handle(Cancel(id), 10)

    def handed(self) -> list[list[Any]]:
        """What came to the main thread: the ids of jobs, and cancels."""
        batches: list[list[Any]] = []
        while not self.intake.inbox.empty():
            batches.append([c.id if isinstance(c, Job) else c for c in self.intake.inbox.get()])
        return batches


class Held:
    """Work that is in the middle until it is told to end."""

    def __init__(self, refuse: bool = False) -> None:
        self.inside = threading.Event()
        self.end = threading.Event()
        self.refuse = refuse

    def __call__(self, id: int) -> None:
        self.inside.set()
        assert self.end.wait(10)
        if self.refuse:
            raise Refusal("no")


def test_a_job_knows_when_the_worker_had_it() -> None:
    scene, before = Scene(), stamp()
    scene.ask(1)
    scene.preparation.turn()
    (job,) = scene.intake.inbox.get()
    assert isinstance(job, Job)
    assert before <= job.received <= stamp()


def test_one_that_cannot_be_prepared_is_named_by_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(id: int) -> None:
        raise KeyError(id)

    scene = Scene(fail)
    message = Generate(1, REQUEST, Sampling(), 9, 9, 9, trace="00-a-b-01")
    scene.intake.handle(message, 100)
    scene.preparation.turn()
    assert "00-a-b-01" in capsys.readouterr().err


@pytest.mark.parametrize("refuse", [False, True])
def test_a_cancel_is_answered_while_its_request_is_prepared(refuse):
    work = Held(refuse)
    scene = Scene(work)
    scene.ask(1)
    thread = threading.Thread(target=scene.preparation.turn)
    thread.start()
    assert work.inside.wait(10)
    scene.intake.handle(Ping(), 1)
    scene.cancel(1)
    assert isinstance(scene.wire.sent[0], Pong)
    assert scene.wire.ends() == [("cancelled", 1)]
    work.end.set()
    thread.join(10)
    assert scene.wire.ends() == [("cancelled", 1)]
    assert scene.handed() == []


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is queued travels together, however slowly this machine prepares it."""
    monkeypatch.setattr(preparation, "GATHER_SECONDS", 10)


def test_what_was_cancelled_in_the_queue_is_not_prepared(unhurried):
    prepared: list[int] = []
    scene = Scene(prepared.append)
    scene.ask(1, 2, 3)
    scene.cancel(2)
    scene.preparation.turn()
    assert scene.wire.ends() == [("cancelled", 2)]
    assert prepared == [1, 3]
    assert scene.handed() == [[1, 3]]


def test_a_cancel_of_what_was_handed_on_comes_after_its_job():
    scene = Scene()
    scene.ask(1)
    scene.preparation.turn()
    scene.cancel(1)
    assert scene.wire.ends() == []
    assert scene.handed() == [[1], [Cancel(1)]]


def test_a_burst_is_handed_on_together(unhurried):
    scene = Scene()
    scene.ask(*range(8))
    scene.preparation.turn()
    assert scene.handed() == [list(range(8))]


def test_what_is_prepared_slowly_is_handed_on_in_parts(monkeypatch):
    monkeypatch.setattr(preparation, "GATHER_SECONDS", 0)
    scene = Scene()
    scene.ask(1, 2)
    scene.preparation.turn()
    assert scene.handed() == [[1]]
    scene.preparation.turn()
    assert scene.handed() == [[2]]


def test_an_idle_engine_waits_for_the_next_of_a_burst(monkeypatch, unhurried):
    monkeypatch.setattr(preparation, "LULL_SECONDS", 10)
    prepared: queue.SimpleQueue[int] = queue.SimpleQueue()

    def work(id: int) -> None:
        if id == 2:
            scene.intake.progress.running = 1
        prepared.put(id)

    scene = Scene(work)
    thread = threading.Thread(target=scene.preparation.turn)
    thread.start()
    scene.ask(1)
    assert prepared.get(timeout=10) == 1
    scene.ask(2)
    thread.join(10)
    assert scene.handed() == [[1, 2]]


def test_a_busy_engine_does_not_wait(monkeypatch, unhurried):
    monkeypatch.setattr(preparation, "LULL_SECONDS", 10)
    scene = Scene()
    scene.intake.progress.running = 1
    scene.ask(1)
    began = time.monotonic()
    scene.preparation.turn()
    assert time.monotonic() - began < 5
    assert scene.handed() == [[1]]


def test_no_job_waits_for_a_large_request():
    scene = Scene()
    scene.ask(1)
    scene.ask(2, size=LARGE_BYTES + 1)
    scene.preparation.turn()
    assert scene.handed() == [[1]]
    scene.preparation.turn()
    assert scene.handed() == [[2]]


def test_a_defect_in_the_work_is_a_refusal(capsys):
    def work(id: int) -> None:
        raise ZeroDivisionError

    scene = Scene(work)
    scene.ask(1)
    scene.preparation.turn()
    assert scene.wire.ends() == [("refused", 1)]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_before_the_model_is_loaded_requests_are_refused():
    scene = Scene()
    scene.preparation.checks = None
    scene.ask(1)
    scene.preparation.turn()
    assert scene.wire.ends() == [("refused", 1)]


def test_whatever_the_interleaving_each_request_goes_one_way():
    count = 400
    draw = random.Random(1)

    def work(id: int) -> None:
        time.sleep(draw.choice([0, 0, 0.0005]))
        if id % 5 == 0:
            raise Refusal("no")

    scene = Scene(work)
    scene.preparation.start()
    for id in range(count):
        scene.ask(id)
        time.sleep(draw.choice([0, 0, 0.0005]))
        if id % 3 == 0:
            scene.cancel(id - draw.randint(0, 4))
    done: Counter[int] = Counter()
    jobs: set[int] = set()
    until = time.monotonic() + 20
    while len(done) < count and time.monotonic() < until:
        done = Counter(id for _, id in scene.wire.ends())
        for command in [command for batch in scene.handed() for command in batch]:
            if isinstance(command, Cancel):
                known = command.id in jobs or command.id in done or command.id < 0
                assert known, "a cancel came before its job"
            else:
                assert command not in jobs
                jobs.add(command)
        done.update(jobs)
    assert set(done) == set(range(count))
    assert set(done.values()) == {1}
    assert len({way for way, _ in scene.wire.ends()}) == 2


TELL = GenerationRequest(model="m", want="prompt", text="x")


def test_a_prompt_is_told_and_goes_no_further() -> None:
    scene = Scene()
    scene.ask(1, request=TELL)
    scene.preparation.turn()
    accepted, output = scene.wire.sent
    assert isinstance(accepted, Accepted)
    assert isinstance(output, Output)
    assert accepted.prompt_tokens == 2
    text, ended = output.pieces
    assert text == Text(1, "x")
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.prompt_tokens, ended.completion_tokens) == ("stop", 2, 0)
    assert scene.handed() == []
    assert not scene.preparation.claim(1)


def test_prompts_let_answers_pass() -> None:
    order: list[int] = []
    scene = Scene(order.append)
    scene.ask(1, 2, request=TELL)
    scene.ask(3, 4)
    for _ in range(3):
        scene.preparation.turn()
    assert order == [3, 4, 1, 2]


def test_a_prompt_that_is_cancelled_meanwhile_is_not_told() -> None:
    scene = Scene()
    scene.work = scene.cancel
    scene.ask(1, request=TELL)
    scene.preparation.turn()
    assert scene.wire.ends() == [("cancelled", 1)]
    assert len(scene.wire.sent) == 1


def test_a_clients_template_holds_nobody_else():
    scene = Scene()
    rendering = scene.rendering = Held()
    scene.ask(1, request=OWN)
    scene.ask(2)
    thread = threading.Thread(target=scene.preparation.template_turn)
    thread.start()
    assert rendering.inside.wait(10)
    scene.preparation.turn()
    assert scene.handed() == [[2]]
    rendering.end.set()
    thread.join(10)
    scene.preparation.turn()
    assert scene.handed() == [[1]]
    assert scene.told == {2: None, 1: "written 1"}


def test_what_was_cancelled_is_not_rendered():
    scene = Scene()
    rendered: list[int] = []
    scene.rendering = rendered.append
    scene.ask(1, 2, request=OWN)
    scene.cancel(1)
    scene.preparation.template_turn()
    scene.preparation.template_turn()
    assert rendered == [2]
    assert scene.wire.ends() == [("cancelled", 1)]


def test_a_template_that_is_refused_ends_its_request_and_no_other():
    scene = Scene()

    def refuse(id: int) -> None:
        raise Refusal("it takes too much", param="template")

    scene.rendering = refuse
    scene.ask(1, request=OWN)
    scene.preparation.template_turn()
    assert scene.wire.ends() == [("refused", 1)]


def test_a_panic_of_a_tokenizer_is_a_refusal_like_any_defect(capsys):
    class PanicException(BaseException):
        pass

    def panic(id: int) -> None:
        raise PanicException("retry-limit-in-match over")

    scene = Scene(panic)
    scene.ask(1)
    scene.preparation.turn()
    assert scene.wire.ends() == [("refused", 1)]
    assert "retry-limit" in capsys.readouterr().err


def test_what_is_no_panic_goes_through():
    def leave(id: int) -> None:
        raise SystemExit

    scene = Scene(leave)
    scene.ask(1)
    with pytest.raises(SystemExit):
        scene.preparation.turn()


def test_a_worker_whose_preparation_does_not_end_answers_no_ping(monkeypatch):
    monkeypatch.setattr(preparation, "HELD_SECONDS", 0.01)
    work = Held()
    scene = Scene(work)
    scene.ask(1)
    thread = threading.Thread(target=scene.preparation.turn)
    thread.start()
    assert work.inside.wait(10)
    while not scene.preparation.held:
        time.sleep(0.001)
    scene.intake.handle(Ping(), 1)
    assert scene.wire.sent == []
    work.end.set()
    thread.join(10)
    scene.intake.handle(Ping(), 1)
    assert isinstance(scene.wire.sent[-1], Pong)


def test_a_thread_that_ends_takes_its_process_along(monkeypatch):
    ends: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr("os._exit", ends.put)

    def panic() -> None:
        raise KeyboardInterrupt

    threads.run_forever("broken", panic)
    assert ends.get(timeout=10) == threads.EXIT_BROKEN
