"""How many tokens a tenant may take."""

from __future__ import annotations

from mlxd.core.caller import Caller
from mlxd.policy.policy_set import PolicySet


class Quotas:
    """What each tenant has taken."""

    def check(self, caller: Caller, policies: PolicySet, now: float, wall: float) -> None:
        """Raises TokensExhausted."""

    def charge(
        self, caller: Caller, policies: PolicySet, tokens: int, now: float, wall: float
    ) -> None:
        """It has taken so many more."""
