"""Time as a parameter: durations from `monotonic`, dates from `wall`, nothing from elsewhere."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

LOOKS = 0.5
"""Seconds: somebody asks an AwakeClock at least this often, or it takes the time for lost."""
_LATE = 2.0
"""Seconds beyond that which a busy loop or machine may take: they pass."""


class Clock(Protocol):
    """What tells the time; tests pass one whose hands they move."""

    def monotonic(self) -> float:
        """Seconds that only ever advance; for every duration and deadline."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch; for dates shown to people, never for durations."""
        ...


def stamp() -> float:
    """A moment, in seconds on a clock that all processes of this machine share (CLOCK_MONOTONIC; on
    macOS mach_absolute_time): what one of them says, another can compare.
    """
    return time.perf_counter()


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class AwakeClock:
    """Time as this process lived it: what passes while it is stopped, or gets no turn, is lost,
    unless it is so little that it may just be busy: one that always is has no longer deadlines.

    So no deadline passes in a moment in which nothing could be heard. The machine's sleep is not
    in `monotonic` anyway. For one thread, which asks it at least every LOOKS seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen = clock.monotonic()
        self.lost = 0.0
        """Seconds in all."""

    def monotonic(self) -> float:
        now = self._clock.monotonic()
        late = now - self._seen - LOOKS
        if late > _LATE:
            self.lost += late
        self._seen = now
        return now - self.lost

    def wall(self) -> float:
        return self._clock.wall()


class within:  # noqa: N801  # it is used as asyncio.timeout is
    """Raises TimeoutError once `seconds` have passed on `clock`: `async with within(clock, 2.0)`.

    asyncio's own timeout goes by the event loop's clock, which runs on while the process is
    stopped, and on macOS while the machine sleeps.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._deadline = clock.monotonic() + seconds
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._look()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._deadline - self._clock.monotonic()
        if left <= 0:
            self._limit.reschedule(loop.time())
        else:
            self._timer = loop.call_later(left, self._look)


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
