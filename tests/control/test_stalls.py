"""Silence of a worker: who is pinged, cancelled, condemned, and what says nothing. Virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from mlxd.control.generation import Limits
from mlxd.control.order import Order
from mlxd.control.transcript import Transcript
from mlxd.core.errors import (
    DeadlineExceeded,
    MlxdError,
    ModelLoadFailed,
    PolicyLine,
    WorkerCrashed,
    WorkerStalled,
)
from mlxd.core.events import Finished, Started, TextDelta
from mlxd.core.footprint import Footprint
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc import messages as ipc
from tests.support.conversation import Conversation
from tests.support.virtual_time import VirtualLoop

MEMORY = ipc.Memory(0, 0, 0)
PONG = ipc.Pong(1, 1, MEMORY)
READY = ipc.Ready(True, 5, 512, 1.0, 40, False, False, Footprint(1000, ()))


class Scene:
    """One generation on one worker, on a virtual clock: 30 s between tokens, 120 s to the first."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.talk = loop.do(lambda: Conversation(clock=loop))
        self.transcript = Transcript()
        self.events: list[object] = []
        self.error: BaseException | None = None
        self.answers = True
        """Whether it answers pings."""
        self.pinged = 0

    def begin(self, total: float = 3000.0, transcript: Transcript | None = None) -> None:
        limits = Limits(total, 120, 30, 2, lambda key: PolicyLine(key, "x", "y"))
        request = GenerationRequest(model="m", text="x")
        order = Order(request, Sampling(), 100, 50, 500, limits, self.loop.now)
        self.transcript = transcript or self.transcript

        async def consume() -> None:
            try:
                async for burst in self.talk.worker.generate(order, self.transcript):
                    self.events += burst
            except MlxdError as error:
                self.error = error

        self.task = self.loop.do(lambda: asyncio.ensure_future(consume()))
        self.loop.settle()

    def says(self, *messages: ipc.Up) -> None:
        self.loop.do(self.talk.says, *messages)
        self.loop.settle()

    def token(self, number: int = 1, **more) -> None:
        id = self.talk.ids[-1]
        text = ipc.Text(id, f"t{number} ")
        self.says(ipc.Output(number, [text], taken=[ipc.Taken(id, [number])], **more))

    def runs(self) -> None:
        """It is accepted, started, and has its first token."""
        id = self.talk.ids[-1]
        self.says(
            ipc.Accepted(id, 3, prompt=ipc.packed([7, 8, 9])), ipc.Output(1, [], started=[id])
        )
        self.token(1, begun=[id])

    def advance(self, seconds: float) -> None:
        """Time passes; pings are answered as they come, unless it does not answer."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.advance(min(0.25, end - self.loop.now))
            pings = len(self.talk.of(ipc.Ping))
            if pings > self.pinged and self.answers:
                self.says(PONG)
            self.pinged = pings

    @property
    def worker_lives(self) -> bool:
        return self.talk.worker.exit is None


def key_of(error: Any) -> str:
    """Of the policy that decided."""
    return str(error.policy.key)


@pytest.fixture
def scene() -> Iterator[Scene]:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    made = Scene(loop)
    yield made
    loop.run(_cleared(loop, made))
    loop.close()
    asyncio.set_event_loop(None)


async def _cleared(loop: VirtualLoop, scene: Scene) -> None:
    """A task that is cancelled may begin another, which waits for the worker's word."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_half_way_to_the_limit_the_worker_is_pinged_once(scene):
    scene.begin()
    scene.runs()
    scene.advance(14.5)
    assert not scene.talk.of(ipc.Ping)
    scene.advance(1)
    assert len(scene.talk.of(ipc.Ping)) == 1
    scene.advance(13)
    assert len(scene.talk.of(ipc.Ping)) == 1
    assert not scene.error


def test_a_worker_that_answers_no_ping_is_dead_at_the_limit(scene):
    scene.begin()
    scene.runs()
    scene.answers = False
    scene.advance(29.5)
    assert not scene.error
    scene.advance(1)
    assert isinstance(scene.error, WorkerStalled)
    assert key_of(scene.error) == "timeouts.inter_token_stall"
    assert not scene.worker_lives
    assert scene.talk.worker.exit is not None
    assert scene.talk.worker.exit.reason == "unresponsive"
    assert scene.talk.worker.victims == 1


def test_a_dead_worker_that_a_signal_had_stopped_accuses_nobody(scene):
    scene.begin()
    scene.runs()
    scene.answers = False
    scene.talk.process.suspended = True
    scene.advance(31)
    assert scene.talk.worker.exit.reason == "suspended"
    assert scene.talk.worker.exit.from_outside


def test_a_worker_that_answers_is_told_to_cancel_and_lives_when_it_does(scene):
    scene.begin()
    scene.runs()
    scene.advance(30.5)
    assert [m.id for m in scene.talk.of(ipc.Cancel)] == [1]
    assert scene.worker_lives
    scene.says(ipc.Output(2, [ipc.Cancelled(1)]))
    assert isinstance(scene.error, WorkerStalled)
    assert scene.talk.worker.alive
    assert scene.talk.worker.running == 0
    scene.advance(60)
    assert scene.talk.worker.alive


def test_a_worker_that_stalled_and_hears_no_cancel_is_condemned(scene):
    scene.begin()
    scene.runs()
    scene.advance(31.5)
    assert scene.worker_lives
    scene.advance(1.5)
    assert not scene.worker_lives
    assert scene.talk.worker.exit.reason == "stalled"
    assert isinstance(scene.error, WorkerStalled)


def test_a_step_since_the_stall_saves_the_worker(scene):
    scene.begin()
    scene.runs()
    scene.advance(31)
    scene.says(ipc.Output(2, []))
    scene.advance(5)
    assert scene.worker_lives
    assert isinstance(scene.error, WorkerStalled)


def test_what_comes_after_the_error_is_neither_delivered_nor_noted(scene):
    scene.begin()
    scene.runs()
    scene.advance(30.5)
    scene.token(2)
    scene.says(ipc.Output(3, [ipc.Cancelled(1)]))
    assert [e.text for e in scene.events if isinstance(e, TextDelta)] == ["t1 "]
    assert list(scene.transcript.tokens) == [1]


def test_no_first_token_is_a_deadline(scene):
    """It reads a prompt for as long as that takes, and says all the while that it lives."""
    scene.begin()
    scene.says(ipc.Accepted(1, 3), ipc.Output(1, [], started=[1]))
    scene.advance(119)
    assert not scene.error
    assert len(scene.talk.of(ipc.Ping)) == 7
    scene.advance(5)
    assert isinstance(scene.error, DeadlineExceeded)
    assert key_of(scene.error) == "timeouts.first_token"
    assert scene.talk.of(ipc.Cancel)


@pytest.mark.parametrize("accepted", [False, True])
def test_before_the_first_token_too_a_worker_that_answers_no_ping_is_dead(scene, accepted):
    """Such as one that was stopped while it had nothing to do."""
    scene.begin()
    scene.answers = False
    if accepted:
        scene.says(ipc.Accepted(1, 3), ipc.Output(1, [], started=[1]))
    scene.advance(29)
    assert not scene.error
    scene.advance(2)
    assert isinstance(scene.error, WorkerStalled)
    assert key_of(scene.error) == "timeouts.inter_token_stall"
    assert not scene.worker_lives


def test_no_first_token_from_a_worker_that_answers_is_a_deadline_and_nobody_dies(scene):
    scene.begin()
    scene.says(ipc.Accepted(1, 3), ipc.Output(1, [], started=[1]))
    scene.advance(121)
    scene.says(ipc.Output(2, [ipc.Cancelled(1)]))
    scene.advance(60)
    assert isinstance(scene.error, DeadlineExceeded)
    assert scene.worker_lives


def test_tokens_are_no_silence(scene):
    scene.begin()
    scene.runs()
    for number in range(2, 20):
        scene.advance(13)
        scene.token(number)
    assert not scene.talk.of(ipc.Ping)
    assert not scene.error


def test_no_stall_is_judged_while_it_is_calm(scene):
    calm = [True]
    scene.talk.worker.calm = lambda: calm[0]
    scene.begin()
    scene.runs()
    scene.answers = False
    scene.advance(100)
    assert not scene.error
    calm[0] = False
    scene.advance(31)
    assert isinstance(scene.error, WorkerStalled)
    assert not scene.worker_lives


@pytest.mark.parametrize("frozen", [16.0, 40.0, 3600.0])
def test_a_timer_that_is_late_because_the_daemon_stood_still_judges_nothing(scene, frozen):
    scene.begin()
    scene.runs()
    scene.advance(1)
    scene.loop.now += frozen
    scene.loop.settle()
    assert not scene.error
    scene.token(2)
    scene.answers = False
    scene.advance(29)
    assert not scene.error
    assert scene.worker_lives
    scene.advance(2)
    assert isinstance(scene.error, WorkerStalled), "and then silence counts again"


def test_the_time_in_which_the_daemon_stood_still_is_not_taken_from_the_generation(scene):
    scene.begin(total=100.0)
    scene.runs()
    scene.advance(1)
    scene.loop.now += 3600.0
    scene.loop.settle()
    for number in range(2, 8):
        scene.advance(13)
        scene.token(number)
    assert not scene.error
    scene.advance(40)
    assert isinstance(scene.error, DeadlineExceeded)


def test_a_cancel_that_is_unheard_while_the_daemon_stood_still_condemns_nobody(scene):
    scene.begin()
    scene.runs()
    scene.loop.do(scene.task.cancel)
    scene.loop.settle()
    assert scene.talk.of(ipc.Cancel)
    scene.loop.now += 600.0
    scene.loop.settle()
    scene.advance(1)
    assert scene.worker_lives
    scene.loop.now += 600.0
    scene.loop.settle()
    assert scene.worker_lives
    scene.says(ipc.Output(2, [ipc.Cancelled(1)]))
    assert scene.talk.worker.running == 0


def test_nor_does_one_of_a_generation_that_stalled(scene):
    scene.begin()
    scene.runs()
    scene.advance(30.5)
    assert scene.talk.of(ipc.Cancel)
    scene.loop.now += 600.0
    scene.loop.settle()
    assert scene.worker_lives
    scene.says(PONG)
    scene.advance(1)
    assert scene.worker_lives
    scene.says(ipc.Output(2, [ipc.Cancelled(1)]))
    assert scene.talk.worker.alive


def test_a_ping_that_is_unheard_while_the_daemon_stood_still_condemns_nobody(scene):
    scene.begin()
    scene.runs()
    scene.loop.do(scene.task.cancel)
    scene.loop.advance(2.1)
    assert scene.talk.of(ipc.Ping)
    scene.loop.now += 600.0
    scene.loop.settle()
    assert scene.worker_lives


# -- over several workers


def test_time_counts_from_the_first_attempt_and_a_start_is_told_once(scene):
    first = scene.talk
    scene.begin(total=100.0)
    scene.runs()
    scene.loop.advance(10)
    scene.token(2)
    scene.loop.run(first.ends(-9))
    scene.loop.settle()
    assert isinstance(scene.error, WorkerCrashed)
    scene.loop.advance(20)
    scene.talk = scene.loop.do(lambda: Conversation(clock=scene.loop))
    scene.error = None
    scene.begin(total=100.0, transcript=scene.transcript)
    (asked,) = scene.talk.of(ipc.Generate)
    assert asked.resume == ipc.Resume(ipc.packed([7, 8, 9]), ipc.packed([1, 2]))
    scene.runs()
    scene.says(ipc.Output(2, [ipc.Ended(1, "stop", 3, 3, 0, 0.5, 4.0)]))
    assert [type(event) for event in scene.events].count(Started) == 1
    finished = scene.events[-1]
    assert isinstance(finished, Finished)
    assert finished.completion_tokens == 3
    assert finished.decode_seconds == pytest.approx(14.0)


def test_a_generation_does_not_get_its_time_anew_with_each_worker(scene):
    scene.begin(total=100.0)
    scene.runs()
    scene.loop.run(scene.talk.ends(-9))
    scene.loop.advance(80)
    scene.talk = scene.loop.do(lambda: Conversation(clock=scene.loop))
    scene.error = None
    scene.begin(total=100.0, transcript=scene.transcript)
    scene.runs()
    scene.advance(19)
    assert not scene.talk.of(ipc.Cancel)
    scene.advance(4)
    assert isinstance(scene.error, DeadlineExceeded)
    assert key_of(scene.error) == "timeouts.generation"


# -- one token for nobody


ENDED = ipc.Ended(1, "stop", 1, 0, 0, 0.1, 0.0)


def canary(scene, timeout=10.0, ready=READY):
    scene.says(ready)
    task = scene.loop.do(lambda: asyncio.ensure_future(scene.talk.worker.canary(timeout, 30.0)))
    scene.loop.settle()
    return task


def test_a_canary_is_one_greedy_token(scene):
    tokens: list[object] = []
    scene.talk.worker.on_token = tokens.append
    task = canary(scene)
    (asked,) = scene.talk.of(ipc.Generate)
    assert asked.request.max_tokens == 1
    assert asked.sampling.temperature == 0
    assert scene.talk.worker.running == 1
    scene.says(ipc.Accepted(1, 1), ipc.Output(1, [], started=[1]))
    assert not tokens
    scene.says(ipc.Output(2, [ipc.Ended(1, "length", 1, 1, 0, 0.1, 0.0)], begun=[1]))
    scene.loop.run(task)
    assert tokens == [scene.talk.worker]
    scene.begin()
    scene.runs()
    assert len(tokens) == 1, "the first token only"


def test_a_canary_asks_an_encoder_for_a_vector(scene):
    task = canary(scene, ready=structs.replace(READY, answers=False))
    (asked,) = scene.talk.of(ipc.Generate)
    assert asked.request.want == "embedding"
    vector = ipc.Output(1, [ipc.Vector(1, b"1234"), ENDED], started=[1], begun=[1])
    scene.says(ipc.Accepted(1, 1), vector)
    scene.loop.run(task)


def test_an_engine_that_ends_without_a_token_is_no_engine(scene):
    task = canary(scene)
    scene.says(ipc.Accepted(1, 1), ipc.Output(1, [ipc.Ended(1, "stop", 1, 0, 0, 0.1, 0.0)]))
    with pytest.raises(ModelLoadFailed, match="generates nothing"):
        scene.loop.run(task)


def test_an_engine_that_refuses_one_token_is_no_engine(scene):
    task = canary(scene)
    scene.says(ipc.Refused(1, "invalid_request", "cannot"))
    with pytest.raises(ModelLoadFailed, match="cannot"):
        scene.loop.run(task)


def test_a_canary_that_gets_nothing_is_a_stall(scene):
    task = canary(scene)
    scene.says(ipc.Accepted(1, 1), ipc.Output(1, [], started=[1]))
    scene.answers = False
    with pytest.raises(WorkerStalled, match="within 10 s"):
        scene.loop.run(task)
    assert not scene.worker_lives


def test_a_canary_in_a_worker_that_dies_says_so(scene):
    task = canary(scene)
    scene.loop.run(scene.talk.ends(-11))
    with pytest.raises(WorkerCrashed):
        scene.loop.run(task)


def test_a_canary_that_is_late_has_a_worker_ended_by_the_limit_of_every_stall(scene):
    """Its thread that reads is well, the other one is in a step that takes long."""
    task = canary(scene, timeout=5.0)
    scene.advance(11)
    assert isinstance(task.exception(), WorkerStalled)
    scene.advance(18)
    assert scene.worker_lives
    scene.advance(8)
    assert not scene.worker_lives
    assert scene.talk.worker.exit.reason == "stalled"


def test_a_canary_waits_for_memory_less_long_than_for_its_token(scene):
    canary(scene, timeout=5.0)
    (asked,) = scene.talk.of(ipc.Generate)
    assert 0 < asked.wait_seconds < 5


@pytest.mark.parametrize("before", [20, 35])
def test_a_wedge_is_not_judged_while_it_is_calm(scene, before):
    calm = [False]
    scene.talk.worker.calm = lambda: calm[0]
    scene.begin()
    scene.says(ipc.Accepted(1, 3), ipc.Output(1, [], started=[1]))
    scene.advance(before)
    calm[0] = True
    scene.talk.worker.interrupt(scene.transcript, DeadlineExceeded("enough"))
    scene.advance(60)
    assert scene.worker_lives
    calm[0] = False
    scene.advance(25)
    assert scene.worker_lives, "a whole limit more"
    scene.advance(10)
    assert not scene.worker_lives


def test_time_in_which_the_daemon_stood_still_is_none_of_a_wedge(scene):
    scene.begin()
    scene.runs()
    scene.talk.worker.interrupt(scene.transcript, WorkerStalled("enough"))
    scene.loop.settle()
    assert scene.talk.of(ipc.Cancel)
    scene.loop.now += 600.0
    scene.loop.settle()
    scene.advance(1)
    assert scene.worker_lives


@pytest.mark.parametrize("seconds", [3, 10])
def test_one_that_was_left_dies_with_its_worker_like_the_others(scene, seconds):
    """Whoever is still asked for was not alone."""
    scene.begin()
    left = scene.task
    scene.begin(transcript=Transcript())
    scene.loop.do(left.cancel)
    scene.answers = False
    scene.talk.process.deaf = True
    scene.advance(seconds)
    worker = scene.talk.worker
    assert worker.condemned is (seconds > 4)
    scene.talk.process.ended.set_result(-9)
    scene.loop.settle()
    assert isinstance(scene.error, WorkerCrashed)
    assert (worker.victims, worker.running) == (2, 0)


def test_nor_was_whoever_is_left_while_its_worker_is_not_known_to_be_over(scene):
    scene.begin()
    left = scene.task
    scene.begin(transcript=Transcript())
    scene.loop.do(scene.talk.worker.connection_lost, None)
    scene.loop.do(left.cancel)
    scene.loop.settle()
    scene.talk.process.ended.set_result(-11)
    scene.loop.settle()
    assert scene.talk.worker.victims == 2
