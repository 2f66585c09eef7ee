"""How much memory the machine has, as its system reports it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The machine's memory at one moment, in bytes."""

    total: int
    available: int

    @property
    def used_percent(self) -> float:
        """0 to 100."""
        return 100.0 * (1.0 - self.available / self.total) if self.total else 0.0


def read_memory() -> MemoryReading | None:
    """None when the system gives no reading: the daemon serves on, without that protection."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, RuntimeError, psutil.Error):
        return None
    return MemoryReading(total=memory.total, available=memory.available)
