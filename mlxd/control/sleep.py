"""The machine fell asleep, or the daemon was stopped: nobody is blamed for that time.

Two things are seen here. A sleep: of two clocks, one counts it. A freeze of the daemon itself
(SIGSTOP, a virtual machine that was paused, a machine out of breath): its own tick comes late, and
its clock leaves that time out. After either, workers have a grace.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable

from mlxd.core.clock import LOOKS, AwakeClock

log = logging.getLogger(__name__)

_NOTICED = 3.0
"""Seconds away from which on it was a sleep."""

Asleep = Callable[[], float]
"""How long the machine has slept in all, plus a constant; seconds."""


def machine_asleep() -> float:
    """Of this machine, by two of its clocks; always 0 where it has no such pair."""
    if sys.platform == "linux":
        counting, resting = time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC
    elif sys.platform == "darwin":  # mach_continuous_time and mach_absolute_time
        counting, resting = time.CLOCK_MONOTONIC_RAW, time.CLOCK_UPTIME_RAW
    else:
        return 0.0
    return time.clock_gettime(counting) - time.clock_gettime(resting)


class Grace:
    """Whether workers are given time, because the machine or the daemon has just woken up."""

    def __init__(
        self,
        clock: AwakeClock,
        seconds: Callable[[], float],
        asleep: Asleep = machine_asleep,
    ) -> None:
        """`seconds`: how long a grace is; it is asked at each wake."""
        self._clock = clock
        self._seconds = seconds
        self._asleep = asleep
        self.until = 0.0
        """When it ends, on the clock it was given."""
        self.on_wake: Callable[[float], None] | None = None
        """Told how many seconds nothing was done."""
        self._away = self._total()

    def calm(self) -> bool:
        """True while no worker may count as stalled or down; sees by itself what has just been."""
        self.look()
        return self._clock.monotonic() < self.until

    def look(self) -> None:
        """Notice a wake, once."""
        total = self._total()
        away, self._away = total - self._away, total
        if away < _NOTICED:
            return
        grace = self._seconds()
        self.until = self._clock.monotonic() + grace
        log.warning("awake after %.0f s; no worker counts as stalled for %g s", away, grace)
        if self.on_wake is not None:
            self.on_wake(away)

    async def run(self) -> None:
        """Look for as long as the daemon lives."""
        self._away = self._total()
        while True:
            await asyncio.sleep(LOOKS / 2)
            self.look()

    def _total(self) -> float:
        self._clock.monotonic()
        return self._clock.lost + self._asleep()
