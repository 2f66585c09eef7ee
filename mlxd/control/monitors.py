"""What is measured of memory: each monitor's share in use, and the system's word on pressure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlxd.control.memory import MemoryReading
from mlxd.control.pressure import Pressure
from mlxd.control.watermarks import Level
from mlxd.ipc import messages as ipc
from mlxd.policy.schema.memory import Monitors as Enabled

SYSTEM_RAM = "system_ram"
MEMORY_LIMIT = "memory_limit"
GPU_WORKING_SET = "gpu_working_set"
PRESSURE_LEVEL = "pressure_level"


class Engine(Protocol):
    """What a worker says of its engine's memory."""

    @property
    def memory(self) -> ipc.Memory: ...
    @property
    def ready(self) -> ipc.Ready | None: ...


@dataclass(frozen=True, slots=True)
class Readings:
    """All of one moment."""

    memory: MemoryReading | None
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of the enabled monitors that give one, 0 to 1 and above: an engine may hold more than the
    GPU recommends.
    """
    pressure: Pressure | None = None

    @property
    def share(self) -> float:
        """Of the fullest monitor; 0 when none can be read: then nothing is protected."""
        return max(self.shares.values(), default=0.0)

    @property
    def fullest(self) -> str:
        """Its name; empty when none can be read."""
        return max(self.shares, key=lambda name: self.shares[name], default="")

    @property
    def level(self) -> Level:
        """As the system itself names it, at this moment."""
        return self.pressure.level if self.pressure is not None else Level.NORMAL

    def each(self) -> dict[str, float]:
        """The share of each monitor; of pressure, the time that processes waited for memory."""
        found = dict(self.shares)
        if self.pressure is not None:
            stalled = self.pressure.stalled
            by_level = {Level.NORMAL: 0.0, Level.WARNING: 0.5, Level.CRITICAL: 1.0}
            found[PRESSURE_LEVEL] = stalled if stalled is not None else by_level[self.level]
        return found

    def __str__(self) -> str:
        """As `memory is at 96.1 %, 0.6 GiB of 16.0 GiB are available`."""
        used = f"{100 * self.share:.1f} %"
        if self.fullest == GPU_WORKING_SET:
            return f"the engines hold {used} of the GPU's recommended working set"
        if self.memory is None:
            return "memory cannot be read"
        of = " of its limit" if self.fullest == MEMORY_LIMIT else ""
        said = f"memory is at {used}{of}" if self.fullest else "memory is not watched"
        available = f"{in_gib(self.memory.available)} of {in_gib(self.memory.total)} are available"
        pressed = ", the system reports pressure" if self.level > Level.NORMAL else ""
        return f"{said}, {available}{pressed}"


class Monitors:
    """Reads all that policy enables. Never raises, and changes nothing."""

    def __init__(
        self,
        read_memory: Callable[[], MemoryReading | None],
        read_pressure: Callable[[], Pressure | None],
        engines: Callable[[], Iterable[Engine]],
    ) -> None:
        self._read_memory = read_memory
        self._read_pressure = read_pressure
        self._engines = engines

    def read(self, enabled: Enabled) -> Readings:
        memory = self._read_memory()
        shares: dict[str, float] = {}
        if enabled.system_ram and memory is not None:
            shares |= _system_shares(memory)
        if enabled.gpu_working_set is not False:
            shares |= working_set_share(self._engines())
        pressure = self._read_pressure() if enabled.pressure_level else None
        return Readings(memory, shares, pressure)


def _system_shares(memory: MemoryReading) -> dict[str, float]:
    """Of the machine, and of the memory limit where there is one."""
    if memory.limit_share is None:
        return {SYSTEM_RAM: memory.used_share}
    machine = memory.machine_share if memory.machine_share is not None else 0.0
    return {SYSTEM_RAM: machine, MEMORY_LIMIT: memory.limit_share}


def working_set_share(engines: Iterable[Engine]) -> dict[str, float]:
    """What all engines hold of what the GPU recommends; empty where it recommends nothing."""
    held = recommended = 0
    for engine in engines:
        held += engine.memory.active + engine.memory.cache
        if engine.ready is not None:
            recommended = max(recommended, engine.ready.working_set_bytes)
    return {GPU_WORKING_SET: held / recommended} if recommended else {}


def in_gib(number: int) -> str:
    """For people: 2.4 GiB, or 310 MiB where that says more."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
