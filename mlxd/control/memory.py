"""How much memory there is for this process: the machine's, or its cgroup's where that is less."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlxd.control import cgroup

_ROOT = Path("/")


def returns_late() -> bool:
    """Whether what a process held may be missing for a while after its end.

    macOS gives memory that was wired for a GPU back in its own time. Linux takes a process apart
    (`exit_mm`) before it closes its files and tells of its end: what is then missing, others took.
    """
    return sys.platform == "darwin"


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The memory there is at one moment, in bytes: the least of the machine's and of the limits'.

    Its total may be of a limit and what is available of the whole machine, or the other way round.
    """

    total: int
    available: int
    machine_share: float | None = None
    """Of the whole machine's memory, what is in use; None: the total is the machine's."""
    limit_share: float | None = None
    """Of the fullest memory limit, what is in use; None: there is none."""

    @property
    def used_share(self) -> float:
        """0 to 1, of whichever is fuller: the machine or a limit."""
        shares = [share for share in (self.machine_share, self.limit_share) if share is not None]
        if shares:
            return max(shares)
        return 1.0 - self.available / self.total if self.total else 0.0

    @property
    def used_percent(self) -> float:
        """0 to 100."""
        return 100.0 * self.used_share


@dataclass(frozen=True, slots=True)
class Swap:
    """In bytes."""

    total: int
    used: int


def read_memory(root: Path = _ROOT) -> MemoryReading | None:
    """None when the system gives no reading: the daemon serves on, without that protection.

    Other processes count, wired memory included. `root` is where `proc` and cgroups are found.
    """
    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError, KeyError, psutil.Error):  # a container may show none of it
        return None
    limits = _limits(root)
    if not memory.total:
        return None
    return MemoryReading(
        total=min([memory.total, *(limit.total for limit in limits)]),
        available=min([memory.available, *(limit.available for limit in limits)]),
        machine_share=1.0 - memory.available / memory.total,
        limit_share=max((limit.share for limit in limits), default=None),
    )


def read_swap() -> Swap | None:
    """None when the system gives no reading."""
    try:
        swap = psutil.swap_memory()
    except (OSError, RuntimeError, RuntimeWarning, KeyError, psutil.Error):
        return None
    return Swap(total=swap.total, used=swap.used)


def _limits(root: Path) -> list[cgroup.Limit]:
    """Those that hold this process; none where they cannot be read."""
    try:
        group = cgroup.own_group(root)
        return list(cgroup.limits(group)) if group is not None else []
    except (OSError, ValueError):
        return []
