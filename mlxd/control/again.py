"""Whether what was refused would be refused again: asked in a flood, so at next to no cost."""

from __future__ import annotations

import math
from functools import partial

from mlxd.control.applicant import Applicant
from mlxd.control.rates import Rates
from mlxd.control.totals import Totals
from mlxd.core.clock import Clock
from mlxd.core.errors import Again, MlxdError, Overloaded, RateLimited, TenantBusy


class Refusals:
    """Of one admission, which says `changed` whenever somebody who was refused might be let in."""

    def __init__(self, rates: Rates, totals: Totals, clock: Clock) -> None:
        """`clock`: the one that rates and quotas go by."""
        self._rates = rates
        self._totals = totals
        self._clock = clock
        self._changes = 0

    def changed(self) -> None:
        self._changes += 1

    def again(self, error: MlxdError, applicant: Applicant) -> Again | None:
        """How the same request would fare again; None: ask again, and see."""
        if not isinstance(error, RateLimited | Overloaded):
            return None
        quota = isinstance(error, RateLimited) and not isinstance(error, TenantBusy)
        until = self._clock.monotonic() + (error.retry_after or 0.0) if quota else math.inf
        rules = applicant.policies.limits.rate_limit
        return Again(
            partial(self._still, error, applicant, self._changes, until),
            whatever=quota and all(rule.key != "user" for rule in rules),
        )

    def _still(self, error: MlxdError, applicant: Applicant, changes: int, until: float) -> bool:
        now = self._clock.monotonic()
        if changes != self._changes or now >= until:
            return False
        if applicant.rated and isinstance(error, Overloaded):
            on_trial: list[str] = []
            try:
                counted = self._rates.take(applicant, now, on_trial.append)
            except RateLimited:
                return False
            if on_trial:  # who asks is to be told: the ordinary way, which counts it
                counted.refund()
                return False
        self._totals.note_turned_away(error, applicant)
        return True
