"""Whether a worker that ended may be started again, and when. Pure: told the time and the policy.

    failure 1, 2, 3 ...   back-off: min(base * factor^(n-1), max) from that failure
    failure `failures`    open: nothing is started but one probe every `open`
    a probe's first token closed; the count stays, so the next failure opens it again
    `probes` failed ones  quarantined, for `quarantine` or until it is reset

The count returns to 0 after `reset_after` without a failure, the time of loads not counted. What a
policy says is asked when it is needed: an edit counts at once, for what has happened before it too.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from mlxd.policy.schema.supervision import Worker as WorkerPolicy

_KEPT_RESTARTS = 10_000
"""As many as a budget's `max` can name."""


class State(StrEnum):
    """Of one slot; no other place knows more of them."""

    IDLE = "idle"
    """No worker, and nothing against starting one."""
    STARTING = "starting"
    SERVING = "serving"
    BACKING_OFF = "backing_off"
    OPEN = "open"
    PROBING = "probing"
    QUARANTINED = "quarantined"


RESTING = frozenset({State.BACKING_OFF, State.OPEN, State.PROBING, State.QUARANTINED})
"""Those of a worker that has failed and is not known to be well again."""
REFUSED = frozenset({State.OPEN, State.PROBING, State.QUARANTINED})
"""Those in which no request has a worker started."""


class Breaker:
    """The failures of one slot, and what follows from them."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        """`chance` draws what jitter leaves to it, from 0 to 1."""
        self._chance = chance
        self._count = 0
        self.failed_at = -math.inf
        """When it failed last."""
        self._load_began: float | None = None
        self._loaded_for = 0.0
        """Seconds of loads since it failed last, without the present one."""
        self._drawn = 0.0
        self._restart_due = False
        self._restarts: deque[float] = deque(maxlen=_KEPT_RESTARTS)
        self._opened = False
        self._probing = False
        self._failed_probes = 0
        self._quarantined = False
        self._rests_from = -math.inf
        """When it opened, a probe ended, or the quarantine began."""

    # -- what happens

    def load_begins(self, now: float) -> None:
        """Until it ends, the time without a failure does not grow."""
        self._load_began = now

    def load_ended(self, now: float) -> None:
        if self._load_began is not None:
            self._loaded_for += now - max(self._load_began, self.failed_at)
            self._load_began = None

    def started(self, now: float) -> bool:
        """A start begins; True: it is a restart. Probes are outside the budget."""
        restart, self._restart_due = self._restart_due, False
        if restart and not self._opened:
            self._restarts.append(now)
        return restart

    def failed(self, now: float, policy: WorkerPolicy) -> None:
        """A worker ended unasked, or a start failed."""
        self._end_quarantine(now, policy)
        self._count = self.failures(now, policy) + 1
        self.failed_at = now
        self._loaded_for = 0.0
        self._drawn = self._chance()
        self._restart_due = True
        if self._probing:
            self._probe_failed(now, policy)
        elif self._opened or self._is_too_much(policy):
            self._opened = True
            self._rests_from = now

    def delivered(self) -> None:
        """A token: the worker does what it is for."""
        self._opened = self._probing = False
        self._failed_probes = 0

    def probe(self) -> None:
        """A probe begins, where it is open."""
        self._probing = self._opened and not self._quarantined

    def put_off(self, now: float) -> None:
        """A probe that is still under way ends: nothing is known against the worker."""
        if self._probing:
            self._probing = False
            self._rests_from = now

    # -- what follows

    def state(self, now: float, policy: WorkerPolicy) -> State:
        """As if no worker lived."""
        self._end_quarantine(now, policy)
        if self._quarantined:
            return State.QUARANTINED
        if self._opened:
            return State.PROBING if self._probing else State.OPEN
        return State.BACKING_OFF if now < self.next_start(now, policy) else State.IDLE

    def failures(self, now: float, policy: WorkerPolicy) -> int:
        """In a row, each less than `reset_after` after the one before."""
        return self._count if self._quiet(now) < float(policy.backoff.reset_after) else 0

    def next_start(self, now: float, policy: WorkerPolicy) -> float:
        """When the next start may be made, a probe where it is open; it may be past."""
        self._end_quarantine(now, policy)
        if self._quarantined:
            return self._rests_from + float(policy.breaker.quarantine)
        if self._opened:
            return self._rests_from + float(policy.breaker.open)
        return self.failed_at + self._wait(self.failures(now, policy), policy)

    # -- inside

    def _quiet(self, now: float) -> float:
        """Seconds since it failed last, without those that loads took."""
        end = now if self._load_began is None else max(self._load_began, self.failed_at)
        return end - self.failed_at - self._loaded_for

    def _probe_failed(self, now: float, policy: WorkerPolicy) -> None:
        self._probing = False
        self._rests_from = now
        self._failed_probes += 1
        self._quarantined = self._failed_probes >= policy.breaker.probes

    def _end_quarantine(self, now: float, policy: WorkerPolicy) -> None:
        if self._quarantined and now >= self._rests_from + float(policy.breaker.quarantine):
            self._quarantined = self._opened = False
            self._failed_probes = 0

    def _is_too_much(self, policy: WorkerPolicy) -> bool:
        """Whether this failure is the one that opens it, or no window has a restart left for it."""
        if self._count >= failures_to_open(policy):
            return True
        at = self.failed_at + self._wait(self._count, policy)
        return any(
            sum(restart > at - float(window.per) for restart in self._restarts) >= window.max
            for window in policy.budget
        )

    def _wait(self, failures: int, policy: WorkerPolicy) -> float:
        """Seconds from the last failure; chance only ever shortens them."""
        if failures == 0:
            return 0.0
        backoff, longest = policy.backoff, float(policy.backoff.max)
        doublings = min(failures - 1, 64)
        seconds = min(float(backoff.base) * float(backoff.factor) ** doublings, longest)
        return seconds * (1.0 - float(backoff.jitter) * self._drawn)


def failures_to_open(policy: WorkerPolicy) -> int:
    """The failure that opens it; auto: the first that no budget has a restart for."""
    failures = policy.breaker.failures
    if failures == "auto":
        return min(window.max for window in policy.budget) + 1
    return failures
