"""Time as a parameter: durations from `monotonic`, dates from `wall`, nothing from elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """What tells the time; tests pass one whose hands they move."""

    def monotonic(self) -> float:
        """Seconds that only ever advance; for every duration and deadline."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch; for dates shown to people, never for durations."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


@dataclass(slots=True)
class ManualClock:
    """A clock that stands still until it is told to advance."""

    now: float = 1000.0
    epoch: float = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.epoch + self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
