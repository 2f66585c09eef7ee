"""The guard follows readings without a request. It is told the time; its neighbours are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlxd.control.exit import Verdict
from mlxd.control.guard import Guard
from mlxd.control.memory import MemoryReading
from mlxd.control.monitors import Monitors
from mlxd.control.pressure import Pressure
from mlxd.control.shedding import Strain
from mlxd.control.watermarks import Level
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.clock import ManualClock
from mlxd.core.errors import InsufficientMemory, MlxdError
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from mlxd.telemetry.events import Events
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

GIB = 2**30
TOTAL = 100 * GIB


@dataclass
class Worker:
    """Remembers what is done to it."""

    name: str
    newest: float | None = None
    priority: Priority = "medium"
    pid: int = 1
    memory: ipc.Memory = field(default_factory=lambda: ipc.Memory(0, 0, 0))
    ready: ipc.Ready | None = None
    budget: ipc.Budget | None = None
    trims: int = 0
    verdict: Verdict | None = None
    errors: list[MlxdError] = field(default_factory=list)

    @property
    def lowest(self) -> tuple[int, float] | None:
        return (PRIORITIES.index(self.priority), self.newest) if self.newest is not None else None

    def trim(self) -> None:
        self.trims += 1

    def end_lowest(self, error: MlxdError) -> bool:
        self.errors.append(error)
        return True

    def condemn(self, verdict: Verdict) -> None:
        self.verdict = verdict


class Machine:
    """A machine of 100 GiB with models in memory; what the guard does to it stands in `log`."""

    def __init__(self, folder: Path, memory: str = "") -> None:
        self.folder = folder
        self.used = 0.5
        self.readable = True
        self.pressure: Pressure | None = None
        self.idle: dict[str, float] = {}
        """Shares of memory that idle models give back, the least recently used first."""
        self.pinned: dict[str, float] = {}
        """Those that only `all` evicts."""
        self.running: list[Worker] = []
        self.log: list[str] = []
        self.evictions = 0
        self.left = 1.0
        """Of what workers may keep of earlier prompts."""
        self.blocked: MlxdError | None = None
        self.closed: MlxdError | None = None
        self.strained: Strain | None = None
        self.resident: dict[int, int] = {}
        self.evicting = asyncio.Event()
        self.slow: asyncio.Event | None = None
        self.clock = ManualClock()
        self.policies = self.written(memory)

    def written(self, memory: str) -> PolicySet:
        return load(write_policies(self.folder / "policies", {"memory": memory}))

    def guard(self, clock: VirtualLoop | ManualClock | None = None) -> Guard:
        clock = clock or self.clock
        self.events = Events(clock)
        return Guard(
            self.policies,
            Monitors(self.read, lambda: self.pressure, self.workers),
            self,
            self,
            clock=clock,
            events=self.events,
            counts=self,
            resident_of=self.resident.get,
        )

    def read(self) -> MemoryReading | None:
        available = round(TOTAL * (1 - self.used))
        return MemoryReading(TOTAL, available) if self.readable else None

    def lend(self, left: float) -> None:
        self.left = left

    def memory_action(self, action: str) -> None:
        self.log.append(f"count {action}")

    def evicted(self, reason: str, models: int = 1) -> None:
        assert reason == "watermark"
        self.evictions += models

    # -- what a residency and an admission offer

    def workers(self) -> list[Worker]:
        return self.running

    def block_loads(self, why: MlxdError | None) -> None:
        self.log.append("loads" if why is None else "no loads")
        self.blocked = why

    def shut(self, error: MlxdError | None) -> None:
        self.log.append("open" if error is None else "shut")
        self.closed = error

    def strain(self, strain: Strain | None) -> None:
        self.log.append("all classes" if strain is None else f"shed at {strain.level.word}")
        self.strained = strain

    async def relieve(self, enough: Callable[[], bool], *, all: bool = False) -> list[str]:
        gone = []
        for models in (self.idle, self.pinned) if all else (self.idle,):
            while models and not enough():
                self.evicting.set()
                if self.slow is not None:
                    await self.slow.wait()
                name = next(iter(models))
                self.used -= models.pop(name)
                gone.append(name)
                self.log.append(f"evict {name}")
        return gone

    @property
    def refuses(self) -> tuple[bool, bool]:
        """Loads, generations."""
        return self.blocked is not None, self.closed is not None

    @property
    def deeds(self) -> list[str]:
        """The log so far, without counts and without who is shed; it is then empty."""
        done = [line for line in self.log if not line.startswith(("count", "shed", "all"))]
        self.log.clear()
        return done


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def kinds(machine: Machine) -> list[str]:
    return [event.type for event in machine.events.since()]


# -- marks


async def test_below_the_marks_nothing_is_done(machine: Machine) -> None:
    guard = machine.guard()
    machine.idle = {"a": 0.1}
    await guard.check()
    assert (guard.level, guard.warnings(), machine.deeds, kinds(machine)) == (0, [], [], [])


async def test_others_may_look_at_something_as_often(machine: Machine) -> None:
    guard = machine.guard()
    looks: list[int] = []
    guard.on_look = lambda: looks.append(1)
    await guard.check()
    await guard.check()
    assert len(looks) == 2


async def test_over_warning_buffers_are_freed_and_it_is_told_once(machine: Machine) -> None:
    guard, worker = machine.guard(), Worker("a")
    machine.running, machine.used, machine.idle = [worker], 0.86, {"a": 0.1}
    await guard.check()
    await guard.check()
    assert guard.level == Level.WARNING
    assert worker.trims == 2
    assert machine.idle == {"a": 0.1}
    assert kinds(machine) == ["pressure"]
    (warning,) = guard.warnings()
    assert warning.startswith("memory is at 86.0 %, 14.0 GiB of 100.0 GiB are available: unused")
    assert "(memory.watermarks.warning.enter: 85% (built-in default" in warning


async def test_over_critical_idle_models_go_until_it_is_below_clear(machine: Machine) -> None:
    guard = machine.guard()
    machine.used = 0.96
    machine.idle = {"old": 0.03, "older": 0.04, "new": 0.1}
    await guard.check()
    assert machine.deeds == ["no loads", "evict old", "evict older", "loads"]
    assert guard.level == Level.WARNING
    assert machine.blocked is None


async def test_while_critical_no_model_is_loaded_and_it_is_said_why(machine: Machine) -> None:
    guard = machine.guard()
    machine.policies = machine.written("watermarks: {critical: {enter: 90%}}\n")
    guard.apply(machine.policies)
    machine.used = 0.961
    await guard.check()
    error = machine.blocked
    assert isinstance(error, InsufficientMemory)
    assert error.message == (
        "memory is at 96.1 %, 3.9 GiB of 100.0 GiB are available:"
        " no model is loaded until it is below 85 %"
    )
    assert str(error.policy) == "memory.watermarks.critical.enter: 90% (policies/memory.yaml:2)"
    assert error.retry_after == 10.0
    assert guard.warnings() == [
        "memory is at 96.1 %, 3.9 GiB of 100.0 GiB are available: loads are blocked, idle models"
        " are dropped, classes whose shed_at is reached are refused"
        " (memory.watermarks.critical.enter: 90% (policies/memory.yaml:2))"
    ]
    machine.used = 0.86
    await guard.check()
    assert machine.blocked is not None
    assert "86.0 %" in machine.blocked.message
    machine.used = 0.84
    await guard.check()
    assert machine.blocked is None


async def test_less_is_kept_of_prompts_while_a_mark_says_so(machine: Machine) -> None:
    guard = machine.guard()
    left = []
    for used in (0.5, 0.86, 0.96, 0.92, 0.88, 0.5):
        machine.used = used
        await guard.check()
        left.append(machine.left)
    assert left == [1.0, 0.5, 0.0, 0.0, 0.5, 1.0], "the critical mark is left below 90 %"


@pytest.mark.parametrize(
    ("actions", "left"), [("[warn]", 1.0), ("[drop_mlx_cache]", 0.5), ("[evict_lru]", 0.0)]
)
async def test_what_is_left_of_kept_prompts_follows_the_actions(
    tmp_path: Path, actions: str, left: float
) -> None:
    machine = Machine(tmp_path, f"watermarks: {{warning: {{actions: {actions}}}}}\n")
    machine.used = 0.9
    await machine.guard().check()
    assert machine.left == left


async def test_a_jump_to_emergency_does_all_lower_marks_actions_first(machine: Machine) -> None:
    guard = machine.guard()
    young, old = Worker("young", newest=7.0), Worker("old", newest=3.0)
    machine.running = [old, young]
    machine.used, machine.idle, machine.pinned = 0.999, {"a": 0.001}, {"b": 0.001}
    await guard.check()
    assert machine.log == [
        "count warn",
        "count drop_mlx_cache",
        "no loads", "count block_loads",
        "evict a", "count evict_lru",
        "shed at emergency", "count shed_low_priority",
        "evict b", "count evict_all_idle",
        "shut", "count stop_admission",
        "count cancel_lowest_priority",
    ]  # fmt: skip
    assert machine.evictions == 2
    assert [len(worker.errors) for worker in (young, old)] == [1, 0]
    assert isinstance(young.errors[0], InsufficientMemory)
    assert "this answer was ended to free memory" in young.errors[0].message
    assert isinstance(machine.closed, InsufficientMemory)
    assert machine.closed.policy is not None
    assert machine.closed.policy.key == "memory.watermarks.emergency.enter"
    assert kinds(machine) == ["pressure"] + ["memory_action"] * 3


async def test_classes_are_shed_as_long_as_a_mark_that_sheds_holds(machine: Machine) -> None:
    guard = machine.guard()
    seen: list[Strain | None] = []
    for machine.used in (0.96, 0.985, 0.91, 0.89):
        await guard.check()
        seen.append(machine.strained)
    levels = [strain.level if strain is not None else None for strain in seen]
    assert levels == [Level.CRITICAL, Level.EMERGENCY, Level.CRITICAL, None]
    words = "memory is at 96.0 %, 4.0 GiB of 100.0 GiB are available"
    assert seen[0] == Strain(Level.CRITICAL, 0.96, words, 10.0)


async def test_the_newest_of_the_lowest_class_is_ended_first(machine: Machine) -> None:
    guard = machine.guard()
    low, older = Worker("low", 2.0, "low"), Worker("older", 1.0, "low")
    machine.running = [Worker("new", 9.0), older, low, Worker("newest", 10.0, "high")]
    machine.used = 0.99
    for ended in (low, older, machine.running[0], machine.running[3]):
        await guard.check()
        assert len(ended.errors) == 1
        ended.newest = None
    told = [event.message for event in machine.events.since() if event.type == "memory_action"]
    assert told[0].endswith("the newest generation of class low of low was ended")


async def test_in_an_emergency_one_generation_is_ended_per_look(machine: Machine) -> None:
    guard, worker = machine.guard(), Worker("a", newest=1.0)
    machine.running, machine.used = [worker], 0.99
    for ended in (1, 2, 3):
        await guard.check()
        assert len(worker.errors) == ended
    worker.newest = None
    await guard.check()
    assert len(worker.errors) == 3


async def test_what_an_eviction_has_mended_ends_nobody(machine: Machine) -> None:
    guard, worker = machine.guard(), Worker("a", newest=1.0)
    machine.running, machine.used, machine.pinned = [worker], 0.99, {"b": 0.5}
    await guard.check()
    assert guard.level == Level.NORMAL
    assert worker.errors == []
    assert machine.deeds == ["no loads", "evict b", "loads"]


async def test_what_lasts_is_undone_when_its_mark_is_left(machine: Machine) -> None:
    guard = machine.guard()
    machine.used = 0.99
    await guard.check()
    assert machine.refuses == (True, True)
    machine.used = 0.935
    await guard.check()
    assert machine.refuses == (True, True)
    machine.used = 0.92
    await guard.check()
    assert machine.refuses == (True, False)
    machine.used = 0.5
    await guard.check()
    assert machine.blocked is None
    assert guard.warnings() == []
    steps = [event.data["to"] for event in machine.events.since()]
    assert steps == ["emergency", "critical", "normal"]


async def test_actions_are_done_in_the_order_that_policy_writes(tmp_path: Path) -> None:
    order = "[stop_admission, evict_lru, block_loads]"
    machine = Machine(tmp_path, f"watermarks: {{critical: {{actions: {order}}}}}\n")
    machine.used, machine.idle = 0.97, {"a": 0.01}
    await machine.guard().check()
    assert machine.deeds == ["shut", "evict a", "no loads"]


async def test_what_could_not_be_undone_is_undone_at_the_next_look(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(why: MlxdError | None) -> None:
        raise KeyError("a defect")

    guard = machine.guard()
    machine.used = 0.96
    await guard.check()
    machine.used = 0.1
    with monkeypatch.context() as broken:
        broken.setattr(machine, "block_loads", fail)
        with pytest.raises(KeyError):
            await guard.check()
    await guard.check()
    assert machine.refuses == (False, False)


async def test_an_action_that_is_edited_away_is_undone(machine: Machine) -> None:
    guard = machine.guard()
    machine.used = 0.96
    await guard.check()
    assert machine.refuses == (True, False)
    guard.apply(machine.written("watermarks: {critical: {actions: [evict_lru]}}\n"))
    await guard.check()
    assert machine.refuses == (False, False)
    assert guard.level == Level.CRITICAL


async def test_marks_without_warn_are_told_only_for_what_refuses(tmp_path: Path) -> None:
    machine = Machine(
        tmp_path,
        "watermarks: {warning: {actions: [drop_mlx_cache]}, critical: {actions: [block_loads]}}\n",
    )
    guard = machine.guard()
    machine.used = 0.9
    await guard.check()
    assert guard.warnings() == []
    machine.used = 0.96
    await guard.check()
    assert "loads are blocked" in guard.warnings()[0]


# -- readings


async def test_a_failing_reading_raises_nothing_and_holds_nothing(machine: Machine) -> None:
    guard = machine.guard()
    machine.used = 0.99
    await guard.check()
    machine.readable = False
    await guard.check()
    assert (guard.level, machine.refuses) == (Level.NORMAL, (False, False))


async def test_under_lasting_pressure_one_model_goes_per_look(machine: Machine) -> None:
    guard = machine.guard()
    machine.pressure, machine.idle = Pressure(Level.CRITICAL, 0.8), {"a": 0.1, "b": 0.1}
    for _ in range(3):
        await guard.check()
        machine.clock.advance(10)
    assert machine.deeds == []
    await guard.check()
    assert machine.deeds == ["no loads", "evict a"]
    await guard.check()
    assert machine.deeds == ["no loads", "evict b"]
    assert "the system reports pressure" in guard.warnings()[0]


async def test_looking_for_health_changes_nothing(machine: Machine) -> None:
    guard = machine.guard()
    machine.used = 0.99
    assert guard.read().share == pytest.approx(0.99)
    assert (guard.level, machine.deeds, kinds(machine)) == (Level.NORMAL, [], [])


# -- before a load, and out of memory


async def test_before_a_load_memory_is_read_and_may_forbid_it(machine: Machine) -> None:
    guard = machine.guard()
    machine.used, machine.idle = 0.97, {"a": 0.5}
    await guard.before_load()
    assert machine.deeds == ["no loads"]


async def test_a_load_never_waits_for_an_eviction_that_is_under_way(machine: Machine) -> None:
    guard, machine.slow = machine.guard(), asyncio.Event()
    machine.used, machine.idle = 0.97, {"a": 0.5}
    check = asyncio.create_task(guard.check())
    await machine.evicting.wait()
    await asyncio.wait_for(guard.before_load(), 1)
    machine.slow.set()
    await check
    assert machine.blocked is None


async def test_an_emergency_that_comes_while_another_is_answered_is_answered_too(
    machine: Machine,
) -> None:
    guard, machine.slow = machine.guard(), asyncio.Event()
    machine.idle = {"a": 0.1}
    guard.emergency("first")
    check = asyncio.create_task(guard.check())
    await machine.evicting.wait()
    guard.emergency("second")
    machine.idle["b"] = 0.1
    machine.slow.set()
    await check
    assert machine.refuses == (True, True)
    machine.idle["c"] = 0.1
    await guard.check()
    assert machine.idle == {}
    assert machine.refuses == (False, False)


async def test_an_engine_out_of_memory_is_an_emergency_at_once(machine: Machine) -> None:
    guard, worker = machine.guard(), Worker("a", newest=1.0)
    machine.running, machine.idle, machine.pinned = [worker], {"a": 0.1}, {"b": 0.1}
    guard.out_of_memory("c")
    assert machine.deeds == ["no loads", "shut"]
    assert machine.closed is not None
    assert machine.closed.message.startswith("the engine of 'c' ran out of memory; memory is at 50")
    await guard.check()
    assert [deed for deed in machine.deeds if deed.startswith("evict")] == ["evict a", "evict b"]
    assert worker.errors == []  # readings say that there is memory again
    assert (guard.level, machine.refuses) == (Level.NORMAL, (False, False))
    assert kinds(machine)[:2] == ["memory_emergency", "pressure"]


@pytest.mark.parametrize(
    ("used", "left"),
    [(0.5, Level.NORMAL), (0.94, Level.WARNING), (0.96, Level.CRITICAL), (0.99, Level.EMERGENCY)],
)
async def test_an_emergency_falls_back_to_what_readings_say(
    machine: Machine, used: float, left: Level
) -> None:
    guard = machine.guard()
    machine.used = used
    await guard.check()
    guard.out_of_memory("a")
    assert (guard.level, machine.refuses) == (Level.EMERGENCY, (True, True))
    await guard.check()
    assert guard.level == left
    assert machine.refuses == (left >= Level.CRITICAL, left >= Level.EMERGENCY)
    steps = [event.data["to"] for event in machine.events.since() if event.type == "pressure"]
    assert steps[-1:] == [left.word]


async def test_an_emergency_counts_for_no_time_that_a_mark_has_to_last(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "watermarks: {emergency: {for: 30s}}\n")
    guard = machine.guard()
    machine.used = 0.97
    guard.out_of_memory("a")
    await guard.check()
    machine.clock.advance(29)
    machine.used = 0.99
    for level in (Level.CRITICAL, Level.CRITICAL, Level.EMERGENCY):
        await guard.check()
        assert guard.level == level
        machine.clock.advance(15)


async def test_two_emergencies_in_a_row_are_told_of_and_end_together(machine: Machine) -> None:
    guard = machine.guard()
    machine.used, machine.pinned = 0.94, {"c": 0.01}
    guard.out_of_memory("a")
    guard.out_of_memory("b")
    assert machine.closed is not None
    assert machine.closed.message.startswith("the engine of 'b'")
    await guard.check()
    assert (guard.level, machine.refuses) == (Level.WARNING, (False, False))
    assert kinds(machine).count("memory_emergency") == 2
    deeds = machine.deeds
    assert deeds[:-2] == ["no loads", "shut"] * 2 + ["no loads", "evict c", "shut"]
    assert set(deeds[-2:]) == {"loads", "open"}


async def test_an_emergency_whose_actions_fail_ends_too(machine: Machine) -> None:
    async def fail(enough: Callable[[], bool], *, all: bool = False) -> list[str]:
        raise OSError("no")

    guard = machine.guard()
    machine.used, machine.relieve = 0.94, fail  # type: ignore[method-assign]
    guard.out_of_memory("a")
    with pytest.raises(OSError, match="no"):
        await guard.check()
    await guard.check()
    assert (guard.level, machine.refuses) == (Level.WARNING, (False, False))


async def test_marks_that_are_edited_upwards_are_left(tmp_path: Path) -> None:
    low = "warning: {enter: 60%}, critical: {enter: 70%}, emergency: {enter: 80%}"
    machine = Machine(tmp_path, f"watermarks: {{{low}}}\n")
    guard = machine.guard()
    machine.used = 0.94
    await guard.check()
    assert machine.refuses == (True, True)
    guard.apply(machine.written("watermarks: {emergency: {actions: [stop_admission]}}\n"))
    await guard.check()
    assert (guard.level, machine.refuses) == (Level.WARNING, (False, False))


async def test_an_edit_beside_the_marks_ends_none(machine: Machine) -> None:
    guard = machine.guard()
    machine.used = 0.99
    await guard.check()
    machine.used = 0.94
    guard.apply(machine.written("check_interval: 1s\n"))
    await guard.check()
    assert guard.level == Level.EMERGENCY


# -- without any request, on a virtual clock


@pytest.fixture
def lively(tmp_path: Path) -> Callable[..., None]:
    """Run a story beside the guard's own loop."""

    def run(story: Callable[[Machine, Guard], object], memory: str = "") -> None:
        loop = VirtualLoop()

        async def main() -> None:
            machine = Machine(tmp_path, memory)
            guard = machine.guard(loop)
            guard.start()
            await story(machine, guard)  # type: ignore[misc]
            await guard.close()

        loop.run(main())
        loop.close()

    return run


def test_eviction_follows_a_reading_within_one_interval_without_a_request(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        await asyncio.sleep(3600.5)
        assert machine.deeds == []
        machine.used, machine.idle = 0.97, {"a": 0.5}
        await asyncio.sleep(10)
        assert machine.deeds == ["no loads", "evict a", "loads"]

    lively(story)


def test_an_edit_is_followed_at_once(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        await asyncio.sleep(1)
        machine.idle = {"a": 0.3}
        guard.apply(
            machine.written("watermarks: {warning: {enter: 30%}, critical: {enter: 40%}}\n")
        )
        await asyncio.sleep(0.1)
        assert "evict a" in machine.deeds

    lively(story)


def test_a_shorter_interval_counts_from_the_edit_on(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        guard.apply(machine.written("check_interval: 1s\n"))
        await asyncio.sleep(0.5)
        machine.used = 0.97
        await asyncio.sleep(1)
        assert machine.blocked is not None

    lively(story, "check_interval: 1h\n")


def test_a_mark_with_a_time_counts_when_that_is_over(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        machine.used = 0.97
        await asyncio.sleep(2.9)
        assert machine.refuses == (False, False)
        await asyncio.sleep(0.2)
        assert machine.refuses == (True, False)

    lively(story, "check_interval: 1h\nwatermarks: {critical: {for: 3s}}\n")


def test_the_rest_of_an_emergency_is_done_at_once(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        await asyncio.sleep(1)
        machine.pinned = {"b": 0.1}
        guard.emergency("out of memory")
        await asyncio.sleep(0.01)
        assert "evict b" in machine.deeds
        assert machine.closed is None

    lively(story)


def test_a_failed_eviction_does_not_end_the_watch(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        async def fail(enough: Callable[[], bool], *, all: bool = False) -> list[str]:
            raise OSError("no")

        machine.relieve = fail  # type: ignore[method-assign]
        machine.used = 0.97
        await asyncio.sleep(100)
        machine.used = 0.1
        await asyncio.sleep(10)
        assert guard.level == Level.NORMAL

    lively(story)


@pytest.mark.parametrize("broken", ["relieve", "read", "workers"])
def test_a_defect_does_not_end_the_watch(
    lively, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        def fail(*args: object, **more: object) -> None:
            raise KeyError("a defect")

        machine.used = 0.97
        machine.idle = {"a": 0.001}
        await asyncio.sleep(2.5)
        assert machine.refuses == (False, False)
        sound = getattr(machine, broken)
        setattr(machine, broken, fail)
        if broken == "read":
            guard._monitors._read_memory = fail
        await asyncio.sleep(100)
        assert 10 <= caplog.text.count("was not done: a defect") <= 105
        setattr(machine, broken, sound)
        guard._monitors._read_memory = machine.read
        await asyncio.sleep(10)
        assert machine.refuses == (True, False)
        machine.used = 0.1
        await asyncio.sleep(10)
        assert (guard.level, machine.refuses) == (Level.NORMAL, (False, False))

    lively(story, "watermarks: {critical: {for: 3s}}\n")


def test_closing_in_the_middle_of_an_eviction_ends_the_watch(lively) -> None:
    async def story(machine: Machine, guard: Guard) -> None:
        machine.slow = asyncio.Event()
        machine.idle = {"a": 0.1}
        guard.emergency("out of memory")
        await machine.evicting.wait()
        await asyncio.wait_for(guard.close(), 1)
        machine.slow.set()
        await asyncio.sleep(100)
        assert machine.idle == {"a": 0.1}
        assert machine.refuses == (True, True), "nothing is let in while the daemon ends"

    lively(story)


# -- a worker's own limit


@pytest.mark.parametrize(
    ("memory", "budget", "resident", "ended"),
    [
        ("", None, 500 * GIB, False),
        ("", 10 * GIB, 22 * GIB, False),
        ("", 10 * GIB, 22 * GIB + 1, True),
        ("", 0, 500 * GIB, False),
        ("worker_limits: {rss_hard: 4GiB}\n", 10 * GIB, 5 * GIB, True),
        ("worker_limits: {rss_hard: 4GiB}\n", None, 4 * GIB, False),
    ],
)
async def test_a_worker_beyond_its_limit_is_ended(
    tmp_path: Path, memory: str, budget: int | None, resident: int, ended: bool
) -> None:
    machine = Machine(tmp_path, memory)
    given = ipc.Budget(budget, 0, 0) if budget is not None else None
    worker = Worker("a", pid=77, budget=given)
    machine.running, machine.resident = [worker], {77: resident}
    guard = machine.guard()
    await guard.check()
    assert worker.verdict == ("over_limit" if ended else None), "it counts as a failure"
    assert kinds(machine) == (["worker_over_limit"] if ended else [])


async def test_a_worker_that_is_gone_is_not_looked_at(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "worker_limits: {rss_hard: 1MiB}\n")
    worker = Worker("a", pid=77)
    machine.running = [worker]
    await machine.guard().check()
    assert worker.verdict is None
