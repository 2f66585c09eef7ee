"""How many spares there are to be, and when the next one may be started. Pure: told what is so."""

from __future__ import annotations

import math
from typing import Literal

from mlxd.control.breaker import RESTING, Breaker, State
from mlxd.control.watermarks import Level
from mlxd.policy.schema.supervision import Worker as WorkerPolicy

AMPLE_BYTES = 8 * 2**30
"""Of memory: with less, a process that does nothing is too dear."""
SETTLE_SECONDS = 1.0
"""From the start of the daemon, or the last load, until a spare may take any of the processor."""


def wanted(policy: int | Literal["auto"], total: int | None, level: Level) -> int:
    """`total`: bytes of memory that there are for the daemon; None: nobody can tell."""
    if level >= Level.WARNING:
        return 0
    if policy == "auto":
        return int(total is not None and total >= AMPLE_BYTES)
    return policy


class Stock:
    """Spares that fail are replaced as workers are, with back-off and a breaker of their own."""

    def __init__(self, now: float) -> None:
        self._breaker = Breaker()
        self._loads = 0
        self._quiet_since = now

    def load_begins(self) -> None:
        self._loads += 1

    def load_ended(self, now: float) -> None:
        self._loads -= 1
        self._quiet_since = now

    def next_start(self, missing: int, now: float, policy: WorkerPolicy) -> float:
        """When the next one may be started; inf: not before something changes."""
        if missing <= 0 or self._loads:
            return math.inf
        rested = -math.inf
        if self._breaker.state(now, policy) in RESTING:
            rested = self._breaker.next_start(now, policy) or -math.inf
        return max(self._quiet_since + SETTLE_SECONDS, rested)

    def starts(self, now: float, policy: WorkerPolicy) -> None:
        """One is started; where the breaker is open that is its probe."""
        if self._breaker.state(now, policy) is State.OPEN:
            self._breaker.probe()
        self._breaker.started(now)

    def warm(self) -> None:
        """It has all that an engine needs."""
        self._breaker.delivered()

    def failed(self, now: float, policy: WorkerPolicy) -> None:
        """It ended by itself, did not become warm, or did not take its model."""
        self._breaker.failed(now, policy)
