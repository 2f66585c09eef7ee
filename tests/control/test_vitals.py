"""Checks of running workers, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxd.control.breaker import State
from mlxd.control.vitals import Vitals
from mlxd.core.clock import AwakeClock
from mlxd.core.errors import InsufficientMemory, ModelLoadFailed, WorkerStalled
from mlxd.ipc import messages as ipc
from mlxd.policy.load import Override, load
from tests.support.engines import Engine, World

NOTHING = ipc.Memory(0, 0, 0)
IDLE = ipc.Pong(5, 0, NOTHING)


def steps(*numbers: int) -> list[ipc.Pong | None]:
    return [ipc.Pong(number, 1, NOTHING) for number in numbers]


class Ward(World):
    """Engines that are watched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.load_seconds = 0.0
        self.calm = False
        self.vitals = Vitals(self.supervisor, self.loop, self.policies, lambda: self.calm)
        self.watching: asyncio.Task[None] | None = None

    def engine(self, name: str = "a", pongs: list[ipc.Pong | None] | None = None) -> Engine:
        engine: Engine = self.answer(name)
        engine.pongs = pongs or [IDLE]
        return engine

    def watch(self) -> None:
        self.watching = self.loop.create_task(self.vitals.run())
        self.loop.settle()

    def policy(self, key: str, text: str) -> None:
        new = load(None, [Override(f"supervision.worker.health.{key}", text, "a test", yaml=True)])
        self.loop.do(self.vitals.apply, new)
        self.loop.settle()

    def close(self) -> None:
        if self.watching is not None:
            self.watching.cancel()
            self.loop.settle()
        super().close()


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    made = Ward(tmp_path)
    yield made
    made.close()


def test_three_checks_without_an_answer_end_a_worker(ward: Ward) -> None:
    engine = ward.engine(pongs=[None])
    ward.watch()
    ward.advance(24.9)
    assert engine.alive
    ward.advance(0.1)
    assert ward.of("worker_down")[0]["reason"] == "unresponsive"
    assert ward.slot().state is State.BACKING_OFF


def test_a_check_that_is_answered_begins_the_count_anew(ward: Ward) -> None:
    engine = ward.engine(pongs=[None, None, IDLE, None, None, IDLE])
    ward.watch()
    ward.advance(100)
    assert engine.alive


def test_a_busy_worker_that_makes_no_step_has_stalled(ward: Ward) -> None:
    engine = ward.engine(pongs=steps(7))
    ward.watch()
    ward.advance(29)
    assert engine.alive
    ward.advance(1)
    assert ward.of("worker_down")[0] | {"reason": "stalled", "step": 7} == ward.of("worker_down")[0]


def test_a_busy_worker_that_makes_steps_is_well(ward: Ward) -> None:
    engine = ward.engine(pongs=steps(*range(30)))
    ward.watch()
    ward.advance(200)
    assert engine.alive


def test_a_worker_that_has_just_become_busy_has_made_no_step_yet(ward: Ward) -> None:
    ward.policy("failures_down", "1")
    engine = ward.engine(pongs=[IDLE, *steps(5, 6), ipc.Pong(6, 0, NOTHING), *steps(6, 7)])
    ward.watch()
    ward.advance(49)
    assert engine.alive


def test_a_worker_that_loads_is_not_asked(ward: Ward) -> None:
    ward.load_seconds = 200.0
    asking = ward.ask()
    ward.watch()
    assert ward.watching is not None
    ward.engines[0].pongs = [None]
    ward.loop.run(ward.vitals.wake())
    ward.advance(100)
    assert ward.engines[0].alive
    assert not ward.watching.done(), "nothing of it can be asked"
    asking.cancel()


def test_while_all_is_calm_nobody_counts_as_stalled(ward: Ward) -> None:
    engine = ward.engine(pongs=[None])
    ward.calm = True
    ward.watch()
    ward.advance(100)
    assert engine.alive
    ward.calm = False
    ward.advance(40)
    assert not engine.alive


def test_an_edit_is_followed_at_once(ward: Ward) -> None:
    ward.policy("interval", "1h")
    engine = ward.engine(pongs=[None])
    ward.watch()
    ward.advance(100)
    assert engine.alive
    ward.policy("interval", "6s")
    ward.advance(20)
    assert not engine.alive


def test_an_idle_worker_makes_a_token_where_policy_says_so(ward: Ward) -> None:
    ward.policy("probe", "token")
    engine, busy = ward.engine(), ward.engine("b", pongs=steps(*range(9)))
    busy.running = 1
    ward.watch()
    ward.advance(25)
    assert (engine.canaries, busy.canaries) == (1 + 3, 1)

    def silent(engine: Engine, when: str) -> None:
        raise WorkerStalled("no token")

    ward.fate = silent
    ward.advance(30)
    assert not engine.alive
    assert busy.alive


def test_after_a_sleep_each_idle_worker_makes_a_token_or_is_ended(ward: Ward) -> None:
    well, ill, busy = ward.engine("a"), ward.engine("b"), ward.engine("c")
    busy.running = 1

    def silent(engine: Engine, when: str) -> None:
        if engine is ill:
            raise WorkerStalled("no token")

    ward.fate = silent
    ward.loop.run(ward.vitals.wake())
    assert (well.canaries, busy.canaries) == (2, 1)
    assert [data["reason"] for data in ward.of("worker_down")] == ["canary"]
    assert (well.alive, ill.alive, busy.alive) == (True, False, True)


def test_a_token_that_comes_while_the_daemon_is_stopped_is_not_late(ward: Ward) -> None:
    vitals = Vitals(ward.supervisor, AwakeClock(ward.loop), ward.policies, lambda: False)
    engine, token = ward.engine(), asyncio.Event()

    async def canary(timeout: float, stall: float) -> None:
        await token.wait()

    engine.canary = canary  # type: ignore[method-assign]
    waking = ward.loop.create_task(vitals.wake())
    ward.loop.settle()
    ward.loop.now += 1000.0  # longer than timeouts.first_token
    ward.loop.call_soon(token.set)  # read in the turn that its deadline is due in
    ward.loop.run(waking)
    assert engine.alive


@pytest.mark.parametrize("probed", [False, True])
def test_no_memory_for_a_token_says_nothing_against_a_worker(ward: Ward, probed: bool) -> None:
    def full(engine: Engine, when: str) -> None:
        raise ModelLoadFailed("it generates nothing") from InsufficientMemory("none left")

    engine = ward.engine()
    ward.fate = full
    if probed:
        ward.policy("probe", "token")
        ward.watch()
        ward.advance(100)
    else:
        ward.loop.run(ward.vitals.wake())
    assert engine.canaries > 1
    assert engine.alive


def test_a_check_that_does_not_end_delays_no_round_and_no_other_check(ward: Ward) -> None:
    ward.policy("probe", "token")
    stuck, other = ward.engine("a"), ward.engine("b", pongs=steps(*range(99)))
    other.running = 1
    ward.token_seconds = 1000.0  # whoever gives up waits for the engine's word, which does not come
    ward.watch()
    for _ in range(40):
        ward.advance(5)
        assert not ward.vitals.overdue
    assert stuck.canaries == 2, "one check of it at a time"
    assert 99 - len(other.pongs) == 21
    ward.loop.do(stuck.ends, -9)
    ward.loop.settle()


def test_a_defect_in_a_check_ends_the_watch(ward: Ward) -> None:
    """The daemon depends on it, and does not go on unsupervised."""
    ward.engine().pongs = []
    ward.watch()
    assert ward.watching is not None
    ward.loop.settle()
    assert ward.watching.done()
    assert ward.watching.exception() is not None


def test_one_that_is_silent_delays_no_check_of_another(ward: Ward) -> None:
    ward.policy("failures_down", "99")
    for name in "xyz":
        ward.engine(name, pongs=[None])
    others = [ward.engine(name, pongs=steps(*range(99))) for name in "bcdef"]
    ward.watch()
    ward.advance(51)
    asked = {99 - len(engine.pongs) for engine in others}
    assert asked == {6}, "every 10 s, from the first"


def test_many_workers_are_watched_by_one_timer(ward: Ward) -> None:
    for name in "abcdefghi":
        ward.engine(name)
    ward.watch()
    before = len(asyncio.all_tasks(ward.loop))
    ward.advance(35)
    assert len(asyncio.all_tasks(ward.loop)) == before


def test_a_round_that_does_not_come_is_overdue(ward: Ward) -> None:
    """The watchdog of the daemon asks: while it is so, systemd is told nothing."""
    assert not ward.vitals.overdue
    ward.loop.advance(24)
    assert not ward.vitals.overdue
    ward.loop.advance(2)
    assert ward.vitals.overdue
