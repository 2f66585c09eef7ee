"""The loop over a scripted engine: what it does when things go wrong."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxd.core.footprint import Footprint, LayerGroup
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc.messages import (
    Accepted,
    Budget,
    Cancel,
    Cancelled,
    Ended,
    Memory,
    Need,
    Observed,
    Output,
    Refused,
    Shutdown,
    Text,
    Trim,
    Tuning,
    Up,
)
from mlxd.policy.schema.memory import WorkerLimits
from mlxd.worker import budget, idle, loop
from mlxd.worker.budget import Ledger
from mlxd.worker.claim import Claim
from mlxd.worker.engine import Drafts, Prompt, Reuse, Step
from mlxd.worker.job import Job, Progress
from mlxd.worker.prefix.report import Cache
from mlxd.worker.stops import StopStrings
from mlxd.worker.tuning import Tuned
from mlxd.worker.turns import Turns
from mlxd.worker.warming import Warming

pytestmark = pytest.mark.mlx

KIB = 1024
FOOTPRINT = Footprint(weights_bytes=100 * KIB, groups=(LayerGroup(1, token_bytes=4),))
"""A sequence takes a KiB for each 256 tokens, and nothing else."""


@dataclass
class Token:
    uid: int
    token: int
    finish_reason: str | None = None
    logprobs: Any = None


class Script:
    """An engine that counts up; what it is told to refuse or to break, it does."""

    def __init__(self, *, refuse: int = -1, breaks_at: int = -1, fails: int = -1) -> None:
        self.refuse = refuse
        self.breaks_at = breaks_at
        self.fails = fails
        self.running: dict[int, Prompt] = {}
        self.steps = 0
        self.inserted = 0
        self.largest = 0
        self.started: set[int] = set()
        self._next = 0

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        if any(prompt.tokens == [self.refuse] for prompt in prompts):
            raise ValueError("not this one")
        uids = list(range(self._next, self._next + len(prompts)))
        self._next += len(prompts)
        self.running.update(zip(uids, prompts, strict=True))
        self.largest = max(self.largest, len(prompts))
        return uids

    def remove(self, uids: Sequence[int]) -> None:
        for uid in uids:
            self.running.pop(uid, None)

    def step(self) -> Step:
        self.steps += 1
        if self.steps == self.breaks_at:
            raise RuntimeError("[METAL] Command buffer execution failed")
        for uid in self.running:
            if uid == self.fails:
                self.running[uid].sampler(mx.zeros((1, 4)))
        started = [uid for uid in self.running if uid not in self.started]
        self.started.update(started)
        tokens = [
            Token(uid, self.steps, "length" if self.steps >= prompt.max_tokens else None)
            for uid, prompt in self.running.items()
        ]
        return Step(tokens, started)

    def __len__(self) -> int:
        return len(self.running)

    def make(self) -> Script:
        return self


class Letters:
    def make(self, *, spaced: bool = False) -> Letters:
        return self

    def add(self, token: int) -> str:
        return chr(96 + token % 90)

    def finish(self) -> str:
        return ""


class Plain:
    def separator(self, tools: Any, *, reasoning: bool) -> None:
        return None


class Wire:
    def __init__(self) -> None:
        self.sent: list[Up] = []

    def send(self, message: Up) -> None:
        self.sent.append(message)

    def of(self, kind: type) -> list[Any]:
        pieces = [p for m in self.sent if isinstance(m, Output) for p in m.pieces]
        return [m for m in [*self.sent, *pieces] if isinstance(m, kind)]


def job(id: int, *, tokens: int = 5, max_tokens: int = 4, **sampling: Any) -> Job:
    request = GenerationRequest(model="m", text="x")
    sampling.setdefault("temperature", 0.0)
    return Job(id, request, Sampling(**sampling), [tokens], max_tokens, False, StopStrings(()))


class Heap:
    """An allocator that holds what it is told to."""

    def __init__(self, active: int = 0) -> None:
        self.held = active
        self.budgets: list[Budget] = []
        self.trims = 0
        self.tidied = 0
        self.resets = 0
        self.applied_again = 0

    def apply(self, budget: Budget) -> None:
        self.budgets.append(budget)

    def active(self) -> int:
        return self.held

    def measure(self) -> Memory:
        return Memory(self.held, 0, self.held)

    def trim(self) -> None:
        self.trims += 1

    def tidy(self) -> None:
        self.tidied += 1

    def reset_peak(self) -> None:
        self.resets += 1

    def reapply(self) -> None:
        self.applied_again += 1


def run(
    engine: Script,
    *batches: list[Any] | None,
    heap: Heap | None = None,
    budget: Budget | None = None,
    paced: bool = False,
    at: Progress | None = None,
    reader: Any = None,
    cache: Any = None,
    backing: Any = None,
    prefixes: Any = None,
    tuned: Tuned | None = None,
    turns: Turns | None = None,
) -> Wire:
    """All batches are seen at once, or `paced`: one before each step, where None is a time in
    which nothing comes. After the last, the loop runs dry and shuts down.
    """
    from mlxd.worker.loop import Loop
    from mlxd.worker.making import Maker

    wire = Wire()
    waiting = list(batches)

    class Inbox(queue.SimpleQueue[Any]):
        gave = False

        def empty(self) -> bool:
            gave, self.gave = self.gave, False
            return not waiting or gave

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            self.gave = paced
            batch = waiting.pop(0) if waiting else [Shutdown()]
            if batch is None:
                raise queue.Empty
            return batch

    loop: Any = Loop
    maker: Any = Maker
    loop(
        engine.make,
        wire,
        Inbox(),
        at or Progress(),
        maker=maker(Letters(), Plain(), 64),
        reader=reader,
        ledger=Ledger(FOOTPRINT, 32, budget),
        allocator=heap or Heap(),
        turns=turns or Turns(None),
        cache=cache or Cache(),
        backing=backing,
        prefixes=prefixes,
        tuned=tuned or Tuned(),
        warming=Warming(lambda generate, size: None, 64),
    ).run()
    return wire


def test_all_that_wait_are_inserted_together():
    engine = Script()
    wire = run(engine, [job(1)], [job(2), job(3)])
    assert engine.largest == 3
    assert [m.id for m in wire.of(Accepted)] == [1, 2, 3]
    assert [p.reason for p in wire.of(Ended)] == ["length"] * 3
    assert [p.text for p in wire.of(Text) if p.id == 2] == ["a", "b", "c", "d"]


def test_one_that_the_engine_refuses_does_not_take_others_along():
    wire = run(Script(refuse=9), [job(1), job(2, tokens=9), job(3)])
    assert [m.id for m in wire.of(Refused)] == [2]
    assert wire.of(Refused)[0].message == "the engine does not take this request"
    assert {p.id for p in wire.of(Ended)} == {1, 3}


def test_a_request_whose_sampling_fails_ends_alone():
    wire = run(Script(fails=1), [job(1), job(2, temperature=1.0, top_k=10), job(3)])
    assert [m.id for m in wire.of(Refused)] == [2]
    assert {p.id for p in wire.of(Ended)} == {1, 3}


def test_a_cancel_in_the_batch_of_its_request_counts():
    engine = Script()
    wire = run(engine, [job(1), Cancel(1), Cancel(8)])
    assert [p.id for p in wire.of(Cancelled)] == [1]
    assert not engine.running
    assert engine.steps == 0


def test_an_engine_gives_its_turn_up_when_it_has_nothing_to_step(tmp_path: Path):
    said: list[str] = []
    turns = Turns(tmp_path / "turns", lambda: said.append("finished"))
    turns.exclusive = True
    engine = Script()
    run(engine, [job(1)], turns=turns)
    assert engine.steps > 1
    assert said == ["finished"]


class Breaking(Script):
    """Fails where it is told to; its sequences end at their own length."""

    def __init__(self, *at: int, error: Exception | None = None, removing: bool = False) -> None:
        super().__init__()
        self.at = at
        self.error = error or RuntimeError("[METAL] Command buffer execution failed")
        self.removing = removing
        self.tries = 0
        self.given: dict[int, int] = {}

    def make(self) -> Breaking:
        """Forgets all but what it is to do."""
        self.running.clear()
        self.started.clear()
        return self

    def step(self) -> Step:
        self.tries += 1
        if self.tries in self.at and not self.removing:
            raise self.error
        step = super().step()
        for token in step.tokens:
            self.given[token.uid] = self.given.get(token.uid, 0) + 1
            over = self.given[token.uid] >= self.running[token.uid].max_tokens
            token.finish_reason = "length" if over else None
        return step

    def remove(self, uids: Sequence[int]) -> None:
        if self.tries in self.at and self.removing:
            raise self.error
        super().remove(uids)


def test_an_engine_that_fails_is_made_anew_and_its_requests_go_on(capsys):
    engine, heap = Breaking(3), Heap()
    jobs = [job(1, max_tokens=6), replace(job(2, tokens=7, max_tokens=6), earlier=[1, 2])]
    wire = run(engine, jobs, heap=heap)
    assert [p.completion_tokens for p in wire.of(Ended)] == [6, 6]
    assert [p.text for p in wire.of(Text) if p.id == 1] == list("abcdef")
    assert [p.text for p in wire.of(Text) if p.id == 2] == list("abcd")
    outputs = wire.of(Output)
    assert [m.started for m in outputs if m.started] == [[1, 2]]
    assert [m.begun for m in outputs if m.begun] == [[1, 2]]
    assert "Command buffer" in capsys.readouterr().err
    assert (heap.applied_again, heap.trims) == (1, 1)
    assert [m.predicted_bytes for m in wire.of(Observed)] == [0], "nothing is learnt from it"


def test_an_engine_that_fails_while_a_sequence_leaves_is_made_anew():
    engine = Breaking(2, removing=True)
    wire = run(engine, [job(1, max_tokens=2), job(2, max_tokens=4), job(3, max_tokens=4)])
    assert sorted(p.id for p in wire.of(Ended)) == [1, 2, 3]
    assert [p.text for p in wire.of(Text) if p.id == 3] == ["a", "b", "c", "d"]


class Drafted(Script):
    """Its first step gives the first sequence several tokens; it fails when that leaves."""

    made = 0

    def make(self) -> Script:
        self.made += 1
        return self if self.made == 1 else Script()

    def step(self) -> Step:
        return Step([Token(0, n) for n in (1, 2, 3)], [0], drafts=[Drafts(0, 2, 2)])

    def remove(self, uids: Sequence[int]) -> None:
        raise RuntimeError("[METAL] Command buffer execution failed")


def test_what_was_drafted_for_one_that_has_left_goes_to_nobody_else():
    stopped = replace(job(1, max_tokens=9), stops=StopStrings(("a",)))
    wire = run(Drafted(), [stopped, job(2, max_tokens=4)])
    assert [p.text for p in wire.of(Text) if p.id == 2] == list("abcd")
    assert [(p.id, p.reason) for p in wire.of(Ended)] == [(1, "stop"), (2, "length")]


@pytest.mark.parametrize("second", [4, 66])
def test_an_engine_that_fails_again_too_soon_ends_the_worker(second):
    with pytest.raises(RuntimeError, match="METAL"):
        run(Breaking(2, second), [job(1, max_tokens=200)])


def test_an_engine_that_fails_again_after_long_is_made_anew_again():
    (ended,) = run(Breaking(2, 67), [job(1, max_tokens=200)]).of(Ended)
    assert ended.reason == "length"


def test_an_engine_without_memory_ends_the_worker():
    with pytest.raises(RuntimeError, match="malloc"):
        run(Breaking(2, error=RuntimeError("[malloc] Unable to allocate 1 bytes.")), [job(1)])


def test_memory_of_what_is_read_again_is_reserved_as_for_a_prompt():
    ledger = Ledger(FOOTPRINT, 32)
    ledger.ask(Claim(1, 10, 500, 100, 0.0))
    ledger.decide(0.0)
    ledger.started([1])
    for _ in range(40):
        ledger.took([1])
    ledger.again()
    share = ledger._reservations[1]
    assert (share.claim.prompt, share.claim.longest, share.used) == (50, 510, 50)
    assert share.stage.name == "QUEUED"


def test_those_who_wait_for_memory_do_not_count_as_running():
    seen: list[int] = []

    class Watching(Endless):
        def step(self) -> Step:
            seen.append(progress.running)
            return super().step()

    progress = Progress()
    turns(Watching(), [job(1), long(2, 1300)], [], [Cancel(1)], budget=allowed(4), at=progress)
    assert seen == [1, 1]
    assert progress.running == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), 70),
        (RuntimeError("[METAL] Command buffer execution failed: timeout"), 70),
        (MemoryError("no"), 71),
        (RuntimeError("[metal::malloc] Resource limit (499000) exceeded."), 71),
        (RuntimeError("[malloc] Unable to allocate 123 bytes."), 71),
        (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"), 71),
    ],
)
def test_a_defect_ends_the_process_with_70_and_want_of_memory_with_71(
    monkeypatch, capsys, error, status
):
    from mlxd.worker import __main__ as worker

    said: list[str] = []

    class Broken:
        def run(self) -> None:
            raise error

        def last_words(self) -> None:
            said.append("last words")

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(worker, "_arguments", lambda: 0)
    monkeypatch.setattr(worker, "_start", lambda *_: Broken())
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as caught:
        worker.main()
    assert caught.value.code == status
    assert type(error).__name__ in capsys.readouterr().err
    assert bool(said) == (status == 71)


def test_memory_is_reported_now_and_then():
    wire = run(Script(), [job(1, max_tokens=130)])
    reported = [m.step for m in wire.of(Output) if m.memory]
    assert reported == [1, 65, 129, 130]
    assert len(wire.of(Output)) == 131, "each step, and the rest after them"


def test_what_starts_is_said_with_the_step_and_times_count_from_there():
    class Slow(Script):
        """Begins nothing in its first step."""

        def step(self) -> Step:
            if self.steps == 0:
                self.steps = 1
                time.sleep(1.0)
                return Step([], [])
            return super().step()

    wire = run(Slow(), [job(4)], [job(7)])
    assert [m.started for m in wire.of(Output) if m.started] == [[4, 7]]
    assert all(ended.prefill_seconds < 0.9 for ended in wire.of(Ended))


def allowed(kib: int, *, most: int = 0, answers: int = 0) -> Budget:
    """Of so many KiB beside the weights."""
    return Budget((100 + kib) * KIB, (100 + most) * KIB if most else 0, 7, answers=answers)


def long(id: int, tokens: int, **more: Any) -> Job:
    return replace(job(id), tokens=[5] * tokens, expected_output=4, **more)


def turns(engine: Script, *batches: list[Any] | None, **more: Any) -> Wire:
    return run(engine, *batches, paced=True, **more)


class Endless(Script):
    """Its sequences end at their own length, not at that of the script."""

    def step(self) -> Step:
        step = super().step()
        tokens = [replace(token, finish_reason=None) for token in step.tokens]  # type: ignore[type-var]
        return Step(tokens, step.started)


def test_a_job_that_does_not_fit_waits_until_another_leaves():
    engine = Script()
    wire = turns(
        engine,
        [job(1), long(2, 1300)],
        [allowed(4, answers=2)],
        [],
        [allowed(8)],
        budget=allowed(4),
    )
    assert [(m.id, m.bytes) for m in wire.of(Need)] == [(2, 112 * KIB)]
    assert [m.id for m in wire.of(Accepted)] == [1, 2]
    assert [p.id for p in wire.of(Ended)] == [1, 2]
    assert engine.largest == 1


def test_a_job_that_waits_is_cancelled():
    engine = Script()
    wire = turns(engine, [long(1, 1300)], [Cancel(1)], budget=allowed(4))
    assert [p.id for p in wire.of(Cancelled)] == [1]
    assert not wire.of(Accepted)
    assert engine.steps == 0


def test_a_worker_with_waiting_jobs_shuts_down():
    wire = turns(Script(), [long(1, 1300)], budget=allowed(4))
    assert not wire.of(Refused)


def test_a_job_that_waits_while_nothing_runs_gives_signs_of_life(monkeypatch):
    monkeypatch.setattr(loop, "SIGN_OF_LIFE_SECONDS", 0.0)
    wire = turns(Script(), [long(1, 1300)], None, None, budget=allowed(4))
    assert len(wire.of(Output)) == 2
    assert not wire.of(Observed), "it is not idle"


def test_a_job_whose_need_is_denied_is_refused_with_numbers():
    wire = turns(Script(), [long(1, 1300)], [allowed(4, answers=1)], budget=allowed(4))
    (refused,) = wire.of(Refused)
    assert refused.code == "insufficient_memory"
    assert (refused.needed_bytes, refused.available_bytes) == (106 * KIB, 104 * KIB)


def test_a_job_waits_no_longer_than_it_may():
    wire = turns(
        Endless(),
        [job(1), long(2, 1300, wait_seconds=0.0)],
        [allowed(4, answers=2)],
        [Cancel(1)],
        budget=allowed(4),
    )
    assert [m.id for m in wire.of(Refused)] == [2]


def test_an_answer_stands_at_the_end_of_its_reservation_until_it_is_granted_more():
    longer = replace(job(1), max_tokens=5000, expected_output=10)
    until_then: list[list[Any]] = [[] for _ in range(254)]
    engine = Endless()
    wire = turns(
        engine, [longer], *until_then, None, None, [allowed(3, answers=1)], budget=allowed(2)
    )
    assert len([m for m in wire.of(Output) if not m.pieces]) == 2, "signs of life"
    assert engine.steps == 255 + 256
    assert [m.id for m in wire.of(Need)] == [1, 1]


def test_a_worker_that_stands_shuts_down():
    longer = replace(job(1), max_tokens=5000, expected_output=10)
    engine = Endless()
    turns(engine, [longer], *[[] for _ in range(254)], budget=allowed(2))
    assert engine.steps == 255


def test_an_engine_that_stands_gives_its_turn_up(tmp_path: Path):
    said: list[str] = []
    shared = Turns(tmp_path / "turns", lambda: said.append("finished"))
    shared.exclusive = True
    longer = replace(job(1), max_tokens=5000, expected_output=10)
    turns(Endless(), [longer], *[[] for _ in range(254)], budget=allowed(2), turns=shared)
    assert said == ["finished"]


def test_an_answer_ends_with_length_where_its_reservation_cannot_grow(monkeypatch):
    monkeypatch.setattr(budget, "GRANT_SECONDS", 0.0)
    longer = replace(job(1), max_tokens=5000, expected_output=10)
    wire = turns(Endless(), [longer], budget=allowed(2))
    (ended,) = wire.of(Ended)
    assert ended.reason == "length"
    assert ended.completion_tokens == 256
    assert len(wire.of(Text)) == ended.completion_tokens
    assert [m.id for m in wire.of(Need)] == [1]


def test_a_budget_reaches_the_allocator_and_a_trim_frees():
    heap = Heap()
    given = allowed(9)
    wire = turns(Script(), [given], [Trim()], heap=heap)
    assert heap.budgets == [given]
    assert heap.trims == 1
    assert [m.memory for m in wire.of(Output)] == [Memory(0, 0, 0)]


def test_a_busy_time_is_observed_once_the_engine_is_idle():
    heap = Heap(active=123 * KIB)
    wire = turns(Script(), [job(1), job(2)], [], [], [], [], heap=heap)
    (observed,) = wire.of(Observed)
    assert observed == Observed(102 * KIB, 123 * KIB, 2, 5)
    assert heap.resets == 1
    assert wire.of(Output)[-1].memory is not None, "what it holds now that it rests"


def test_who_asks_soon_finds_what_the_allocator_keeps():
    heap = Heap()
    turns(Script(), [job(1)], *[[]] * 4, None, [job(2)], *[[]] * 4, None, heap=heap)
    assert heap.trims == 0


def test_after_a_while_it_is_given_back_once(monkeypatch):
    monkeypatch.setattr(idle, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(idle, "IDLE_SECONDS", 0.0)
    heap = Heap()
    wire = turns(Script(), [job(1)], *[[]] * 4, [Tuning()], heap=heap)
    assert heap.trims == 1
    assert [m.memory is not None for m in wire.of(Output)[-2:]] == [True, True]


@pytest.mark.parametrize(("seconds", "looks"), [(0.0, True), (60.0, False)])
def test_sooner_it_is_given_back_if_the_heap_has_kept_it_for_long(monkeypatch, seconds, looks):
    monkeypatch.setattr(idle, "PAUSE_SECONDS", seconds)
    heap = Heap()
    turns(Script(), [job(1)], *[[]] * 4, [Tuning()], heap=heap)
    assert (heap.tidied > 0, heap.trims) == (looks, 0)


def test_each_busy_time_begins_a_new_peak():
    heap = Heap()
    wire = turns(Script(), [job(1)], [], [], [], [job(2)], heap=heap)
    assert len(wire.of(Observed)) == 2
    assert heap.resets == 2


def test_held_beyond_the_budget_first_frees_then_ends_the_newest():
    heap = Heap(active=109 * KIB)
    engine = Endless()
    wire = turns(
        engine,
        [job(1), job(2)],
        *[[]] * 16,
        [Cancel(1)],
        heap=heap,
        budget=allowed(8),
    )
    assert heap.trims >= 2
    (refused,) = wire.of(Refused)
    assert (refused.id, refused.code) == (2, "insufficient_memory")
    assert (refused.needed_bytes, refused.available_bytes) == (109 * KIB, 108 * KIB)
    assert [p.id for p in wire.of(Cancelled)] == [1]
    assert len([p for p in wire.of(Text) if p.id == 2]) == 16
    assert not engine.running


def test_what_is_held_beyond_the_budget_is_freed_of_what_is_kept():
    freed: list[int] = []

    class Keeps(Endless):
        free = staticmethod(freed.append)

        def reach(self, prompt: Prompt) -> int:
            return 0

    engine = Keeps()
    turns(
        engine, [job(1)], *[[]] * 8, [Cancel(1)],
        heap=Heap(109 * KIB), budget=allowed(8), prefixes=engine,
    )  # fmt: skip
    assert freed == [KIB]


def test_what_is_held_within_the_budget_ends_nobody():
    wire = turns(
        Endless(), [job(1)], *[[]] * 40, [Cancel(1)], heap=Heap(108 * KIB), budget=allowed(8)
    )
    assert not wire.of(Refused)


def test_what_was_promised_may_be_held_after_the_budget_is_lowered():
    heap = Heap(active=101 * KIB)
    wire = turns(
        Endless(), [job(1)], [allowed(0)], *[[]] * 40, [Cancel(1)], heap=heap, budget=allowed(8)
    )
    assert not wire.of(Refused)


def test_a_job_that_the_engine_refuses_gives_its_memory_back():
    wire = turns(Script(refuse=9), [job(1, tokens=9)], [long(2, 1300)], budget=allowed(6))
    assert [m.id for m in wire.of(Refused)] == [1]
    assert [p.id for p in wire.of(Ended)] == [2]
    assert not wire.of(Need)


class Reusing(Script):
    """It finds something for each prompt. As a store it sees more than there is."""

    def step(self) -> Step:
        step = super().step()
        return replace(step, reused=[Reuse(uid, 3 + uid, missed=5) for uid in step.started])

    def reach(self, prompt: Prompt) -> int:
        return 100


def test_what_is_found_is_told_when_the_prefill_begins_and_at_the_end():
    engine = Reusing()
    wire = run(engine, [replace(job(1), tokens=list(range(9))), job(2)], prefixes=engine)
    assert [accepted.cached_tokens for accepted in wire.of(Accepted)] == [9, 1]
    outputs = [message for message in wire.sent if isinstance(message, Output)]
    told = [message for message in outputs if message.reused]
    assert [(one.id, one.cached_tokens, one.missed) for one in told[0].reused] == [
        (1, 3, 5), (2, 1, 5),
    ]  # fmt: skip
    assert told[0].started == [1, 2]
    assert len(told) == 1
    assert {ended.id: ended.cached_tokens for ended in wire.of(Ended)} == {1: 3, 2: 1}


def test_an_engine_that_is_made_anew_tells_nothing_a_second_time():
    class Once(Reusing, Breaking):
        def make(self) -> Once:
            self.started.clear()
            self.running.clear()
            return self

    engine = Once(70)
    wire = run(engine, [replace(job(1), max_tokens=80, tokens=list(range(9)))])
    outputs = [message for message in wire.sent if isinstance(message, Output)]
    assert sum(len(message.reused) for message in outputs) == 1
    assert wire.of(Ended)[0].cached_tokens == 3


def test_what_the_engine_is_told_of_its_time_is_in_force_at_once():
    tuned = Tuned()
    seen: list[int] = []

    class Told(Script):
        def step(self) -> Step:
            seen.append(tuned.now.min_chunk)
            return super().step()

    run(Told(), [job(1)], [Tuning(min_chunk=77)], paced=True, tuned=tuned)
    assert seen[0] == 32
    assert seen[-1] == 77


def test_the_policy_says_for_how_long_buffers_are_kept():
    told = WorkerLimits.model_fields["mlx_cache_limit"].description or ""
    assert f"until it has been idle for {idle.IDLE_SECONDS:g} s" in told
