"""The system's own word on memory pressure: how long Linux stalls (PSI), the level of macOS."""

from __future__ import annotations

import ctypes
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.control import cgroup
from mlxd.control.watermarks import Level
from mlxd.core.clock import Clock

_SOME_AVG10 = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)
_WARNING_STALL = 0.3
_CRITICAL_STALL = 0.6
"""systemd-oomd's DefaultMemoryPressureLimit."""
SUSTAINED_SECONDS = 30.0
"""systemd-oomd's DefaultMemoryPressureDurationSec."""
_TOGETHER_SECONDS = 5.0
"""Within which the ends are known of all processes that the kernel killed at one time."""
_MACOS_NAME = b"kern.memorystatus_vm_pressure_level"
_MACOS_LEVELS = {2: Level.WARNING, 4: Level.CRITICAL}


@dataclass(frozen=True, slots=True)
class Pressure:
    """What the system says now."""

    level: Level
    stalled: float | None = None
    """Share of the last 10 s in which some process waited for memory; None on macOS, whose level
    has a memory of its own.
    """


def read_pressure(root: Path = Path("/")) -> Pressure | None:
    """None where the system says nothing."""
    if sys.platform == "darwin":
        return macos_pressure(_sysctl_by_name())
    return linux_pressure(root)


def linux_pressure(root: Path) -> Pressure | None:
    """The worst of the machine's and of this process's own cgroup (version 2)."""
    files = [root / "proc/pressure/memory"]
    try:
        group = cgroup.own_group(root)
    except (OSError, ValueError):
        group = None
    if group is not None and group.version == 2:
        files.append(group.folders[0] / "memory.pressure")
    stalls = [share for file in files if (share := _stalled(file)) is not None]
    if not stalls:
        return None
    stalled = max(stalls)
    if stalled >= _CRITICAL_STALL:
        return Pressure(Level.CRITICAL, stalled)
    return Pressure(Level.WARNING if stalled >= _WARNING_STALL else Level.NORMAL, stalled)


SysctlByName = Callable[..., int]
"""sysctlbyname(3): name, buffer, pointer to its size, NULL, 0; 0 is success."""


def macos_pressure(sysctl_by_name: SysctlByName | None) -> Pressure | None:
    """By kern.memorystatus_vm_pressure_level: 1 normal, 2 warning, 4 critical."""
    if sysctl_by_name is None:
        return None
    found = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(found))
    if sysctl_by_name(_MACOS_NAME, ctypes.byref(found), ctypes.byref(size), None, 0) != 0:
        return None
    return Pressure(_MACOS_LEVELS.get(found.value, Level.NORMAL))


class Sustained:
    """Believes a stall once it has lasted: a moment of reclaim is no reason to drop a model."""

    def __init__(self) -> None:
        self._since: dict[Level, float] = {}

    def observe(self, pressure: Pressure | None, now: float) -> Level:
        """The level that has been reached without a break for as long as it takes."""
        level = pressure.level if pressure is not None else Level.NORMAL
        if pressure is not None and pressure.stalled is None:
            return level
        believed = Level.NORMAL
        for one in (Level.WARNING, Level.CRITICAL):
            if level < one:
                self._since.pop(one, None)
            elif now - self._since.setdefault(one, now) >= SUSTAINED_SECONDS:
                believed = one
        return believed


class OomKills:
    """Whether the kernel has killed for want of memory, in this process's own group."""

    def __init__(self, clock: Clock, root: Path = Path("/")) -> None:
        self._clock = clock
        self._root = root
        self._known = self._count(0)
        self._noticed = -math.inf
        """When it was last looked and there were more."""

    def look(self) -> None:
        """To be done now and then: who is killed later is not to be taken for one of these."""
        before, self._known = self._known, self._count(self._known)
        if self._known > before:
            self._noticed = self._clock.monotonic()

    def lately(self) -> bool:
        """Since the last look, or noticed a moment ago: where it kills several at once, each of
        them is asked for.
        """
        self.look()
        return self._clock.monotonic() - self._noticed <= _TOGETHER_SECONDS

    def _count(self, known: int) -> int:
        """As it was, where it cannot be read: want of files passes, and kills nobody."""
        try:
            group = cgroup.own_group(self._root)
            return cgroup.oom_kills(group) if group is not None else known
        except (OSError, ValueError):
            return known


def _stalled(file: Path) -> float | None:
    try:
        found = _SOME_AVG10.search(file.read_text())
    except OSError:  # no such file, or PSI is compiled in and switched off
        return None
    return float(found[1]) / 100 if found is not None else None


def _sysctl_by_name() -> SysctlByName | None:
    library: Any = ctypes.CDLL(None)
    function: SysctlByName | None = getattr(library, "sysctlbyname", None)
    return function
