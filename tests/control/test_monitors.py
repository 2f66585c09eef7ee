from __future__ import annotations

from dataclasses import dataclass, field

from mlxd.control.memory import MemoryReading
from mlxd.control.monitors import Monitors, working_set_share
from mlxd.control.pressure import Pressure
from mlxd.control.watermarks import Level
from mlxd.core.footprint import Footprint
from mlxd.ipc import messages as ipc
from mlxd.policy.schema.memory import Monitors as Enabled

GIB = 2**30


@dataclass
class Engine:
    memory: ipc.Memory = field(default_factory=lambda: ipc.Memory(0, 0, 0))
    ready: ipc.Ready | None = None


def engine(active: int, cache: int, working_set: int = 0) -> Engine:
    ready = ipc.Ready(True, 1, 1, 0.0, 0, False, False, Footprint(0, ()), 0, working_set)
    return Engine(ipc.Memory(active, cache, 0), ready)


THREE_QUARTERS = MemoryReading(100 * GIB, 25 * GIB)


def monitors(memory: MemoryReading | None = THREE_QUARTERS, pressure=None, engines=()) -> Monitors:
    return Monitors(lambda: memory, lambda: pressure, lambda: engines)


def test_what_all_engines_hold_counts_against_what_the_gpu_recommends() -> None:
    engines = [engine(30, 10, 100), engine(40, 0, 100), Engine(ipc.Memory(5, 0, 0))]
    assert working_set_share(engines) == {"gpu_working_set": 0.85}


def test_without_a_recommendation_the_working_set_is_not_counted() -> None:
    assert working_set_share([engine(30, 10)]) == {}
    assert working_set_share([]) == {}


def test_the_fullest_monitor_decides() -> None:
    found = monitors(engines=[engine(90, 0, 100)]).read(Enabled())
    assert found.shares == {"system_ram": 0.75, "gpu_working_set": 0.9}
    assert (found.share, found.fullest) == (0.9, "gpu_working_set")
    assert str(found) == "the engines hold 90.0 % of the GPU's recommended working set"


def test_a_memory_limit_is_a_monitor_of_its_own() -> None:
    memory = MemoryReading(8 * GIB, GIB, machine_share=0.5, limit_share=0.875)
    found = monitors(memory).read(Enabled())
    assert found.shares == {"system_ram": 0.5, "memory_limit": 0.875}
    assert str(found) == "memory is at 87.5 % of its limit, 1.0 GiB of 8.0 GiB are available"


def test_a_monitor_that_is_off_is_not_read() -> None:
    def refuse():
        raise AssertionError

    quiet = Monitors(lambda: MemoryReading(100, 5), refuse, refuse)
    enabled = Enabled(system_ram=False, gpu_working_set=False, pressure_level=False)
    found = quiet.read(enabled)
    assert (found.share, found.each()) == (0.0, {})
    assert found.memory is not None


def test_pressure_is_shown_with_the_shares() -> None:
    stall = Pressure(Level.WARNING, 0.4)
    found = monitors(pressure=stall).read(Enabled())
    assert found.each() == {"system_ram": 0.75, "pressure_level": 0.4}
    assert found.level == Level.WARNING
    assert str(found).endswith("available, the system reports pressure")
    on_macos = monitors(pressure=Pressure(Level.WARNING)).read(Enabled())
    assert on_macos.each()["pressure_level"] == 0.5


def test_no_reading_is_no_share_and_no_error() -> None:
    found = monitors(None).read(Enabled())
    assert (found.share, found.fullest, str(found)) == (0.0, "", "memory cannot be read")
