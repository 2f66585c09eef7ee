"""How often a client may ask: every rule of `limits.rate_limit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlxd.control.applicant import Applicant
from mlxd.control.ratelimit import Quota, RuleWindows, SlidingWindow
from mlxd.core.caller import Caller
from mlxd.core.errors import RateLimited
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import RateLimit
from mlxd.policy.strict_yaml import dotted

WouldDeny = Callable[[str], None]
"""Told the name of each rule in mode dry_run that would have refused."""


@dataclass(frozen=True, slots=True)
class _One:
    """One request in one rule's window."""

    window: SlidingWindow
    client: str
    at: float


@dataclass(frozen=True, slots=True)
class Counted:
    """Where one request counts."""

    ones: tuple[_One, ...] = ()

    def refund(self) -> None:
        for one in self.ones:
            one.window.refund(one.client, one.at)


@dataclass(frozen=True, slots=True)
class RateState:
    """What a client has left of one rule, for the RateLimit headers."""

    name: str
    requests: int
    window: float
    remaining: int
    reset: float


class Rates:
    """What each rule has counted."""

    def __init__(self) -> None:
        self._windows = RuleWindows()

    def apply(self, policies: PolicySet) -> None:
        self._windows.apply(policies.limits.rate_limit)

    def take(self, applicant: Applicant, now: float, would_deny: WouldDeny) -> Counted:
        """Count one request. What a rule refuses, or in mode dry_run would refuse, it does not
        count. Raises RateLimited.
        """
        policies, client = applicant.policies, applicant.caller.name
        ones: list[_One] = []
        for index, rule in enumerate(policies.limits.rate_limit):
            if rule.mode == "off":
                continue
            window = self._windows.of(rule)
            wait = window.take(client, _quota(rule), now)
            if wait is None:
                ones.append(_One(window, client, now))
            elif rule.mode == "dry_run":
                would_deny(rate_rule(rule))
            else:
                Counted(tuple(ones)).refund()
                raise RateLimited(
                    f"Rate limit exceeded. Max {rule.requests} requests"
                    f" per {float(rule.window):g} seconds",
                    retry_after=max(1.0, wait),
                    policy=policies.line(dotted(("limits", "rate_limit", index, "requests"))),
                )
        return Counted(tuple(ones))

    def states(
        self, caller: Caller, policies: PolicySet, now: float, user: str = ""
    ) -> list[RateState]:
        """What each rule that is enforced leaves this client."""
        found = []
        for rule in policies.limits.rate_limit:
            if rule.mode == "enforce":
                quota = _quota(rule)
                left, reset = self._windows.of(rule).remaining(caller.name, quota, now)
                found.append(RateState(rule.name, quota.requests, quota.window, left, reset))
        return found


def rate_rule(rule: RateLimit) -> str:
    """What metrics call a rule."""
    return f"rate_limit:{rule.name}"


def _quota(rule: RateLimit) -> Quota:
    return Quota(rule.requests, float(rule.window), rule.max_keys)
