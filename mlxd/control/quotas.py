"""Tokens that tenants have used, of their `tokens` in a window and their `daily_tokens`.

What a request takes is known when it ends: one that is let in may take more than is left, and is
not cut. The day's use outlives the daemon (usage.py), the window's does not.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from mlxd.control.applicant import ANONYMOUS, Terms, terms_of
from mlxd.control.rates import RateState
from mlxd.control.spent import Spent
from mlxd.core.caller import Caller
from mlxd.core.counts import plural
from mlxd.core.errors import TokensExhausted
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.clients import Tenant

T = TypeVar("T")
MOST_ADDRESSES = 10_000
"""Of clients without a key, those whose use is remembered; the longest silent goes first."""
DAY_S = 86_400
_BELIEVED_S = 3600.0
"""A clock that says an earlier day for so long is right, and was wrong before."""
_DAILY = "daily_tokens"


@dataclass(frozen=True, slots=True)
class Day:
    """What was used on one day, in UTC: for the state file."""

    number: int = 0
    """Days since the epoch."""
    tenants: Mapping[str, int] = field(default_factory=dict)
    """By their names in lower case; ANONYMOUS is all without a key."""
    addresses: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Use:
    """One tenant's, for people."""

    tenant: str
    today: int
    recently: int
    """Within the window of its limits."""
    limits: Tenant


@dataclass(frozen=True, slots=True)
class _Standing:
    """Where one caller is with one of its quotas."""

    field: str
    """Of the tenant, in the policies."""
    quota: int
    used: int
    window: float
    wait: float
    """Seconds until less than all of it is used; 0: less is."""
    reset: float
    """Seconds until more is left; 0: all of it is."""

    @property
    def within(self) -> str:
        if self.field == _DAILY:
            return "per day (UTC)"
        return f"per {plural(float(self.window), 'second')}"


class Quotas:
    """Says who has tokens left. Decides, and tells nobody: who asks counts refusals."""

    def __init__(self, day: Day | None = None) -> None:
        day = day or Day()
        self._day = day.number
        self._behind: float | None = None
        """Since when the clock says an earlier day."""
        self._today = dict(day.tenants)
        self._addresses_today = OrderedDict(day.addresses)
        self._recent: dict[str, Spent] = {}
        self._addresses_recent: OrderedDict[str, Spent] = OrderedDict()
        self.changes = 0
        """How often the day's use has changed."""

    def check(self, caller: Caller, policies: PolicySet, now: float, wall: float) -> None:
        """Raises TokensExhausted: what the caller has used of a quota is all of it or more."""
        terms = terms_of(caller, policies)
        used_up = [one for one in self._standings(caller, terms, now, wall) if one.wait > 0]
        if used_up:
            raise _refusal(terms, max(used_up, key=lambda one: one.wait), wall)

    def charge(
        self, caller: Caller, policies: PolicySet, tokens: int, now: float, wall: float
    ) -> None:
        """So many were used. Of an address, only what a limit is set for is remembered."""
        self._roll(now, wall)
        if tokens <= 0:
            return
        limits = terms_of(caller, policies).tenant
        window = float(limits.window)
        name = _name_of(caller)
        self._today[name] = self._today.get(name, 0) + tokens
        self._recent.setdefault(name, Spent()).add(tokens, window, now)
        if not caller.tenant:
            if limits.daily_tokens is not None:
                used = self._addresses_today.pop(caller.address, 0)
                _put(self._addresses_today, caller.address, used + tokens)
            if limits.tokens is not None:
                recent = self._addresses_recent.pop(caller.address, None) or Spent()
                recent.add(tokens, window, now)
                _put(self._addresses_recent, caller.address, recent)
                self._forget_silent(window, now)
        self.changes += 1

    def remaining(
        self, caller: Caller, policies: PolicySet, now: float, wall: float
    ) -> list[RateState]:
        """What each of its quotas leaves a caller."""
        terms = terms_of(caller, policies)
        return [
            RateState(
                _rule(terms, one.field),
                one.quota,
                one.window,
                max(0, one.quota - one.used),
                one.reset,
                "tokens",
            )
            for one in self._standings(caller, terms, now, wall)
        ]

    def uses(self, policies: PolicySet, now: float, wall: float) -> list[Use]:
        """Of every tenant that has limits or has used something lately; anonymous last."""
        self._roll(now, wall)
        listed = {name.casefold(): name for name in policies.clients.tenants}
        names = sorted({*listed, *self._today, *self._recent} - {ANONYMOUS})
        return [self._use(listed.get(name, name), policies, now) for name in (*names, ANONYMOUS)]

    def day(self, now: float, wall: float) -> Day:
        """For the state file."""
        self._roll(now, wall)
        return Day(self._day, dict(self._today), dict(self._addresses_today))

    # -- how much

    def _standings(
        self, caller: Caller, terms: Terms, now: float, wall: float
    ) -> Iterator[_Standing]:
        limits = terms.tenant
        if (quota := limits.tokens) is not None:
            window, recent = float(limits.window), self._recently(caller)
            wait = recent.until_below(quota, window, now)
            reset = recent.until_more(quota, window, now)
            yield _Standing("tokens", quota, recent.used(window, now), window, wait, reset)
        if (quota := limits.daily_tokens) is not None:
            used, rest = self._used_today(caller, now, wall), DAY_S - wall % DAY_S
            wait, reset = rest if used >= quota else 0.0, rest if used else 0.0
            yield _Standing(_DAILY, quota, used, DAY_S, wait, reset)

    def _recently(self, caller: Caller) -> Spent:
        if caller.tenant:
            found = self._recent.get(_name_of(caller))
        else:
            found = self._addresses_recent.get(caller.address)
        return found or Spent()

    def _used_today(self, caller: Caller, now: float, wall: float) -> int:
        self._roll(now, wall)
        if caller.tenant:
            return self._today.get(_name_of(caller), 0)
        return self._addresses_today.get(caller.address, 0)

    def _use(self, name: str, policies: PolicySet, now: float) -> Use:
        limits = terms_of(Caller("", tenant=name), policies).tenant
        recent = self._recent.get(name.casefold(), Spent())
        used = self._today.get(name.casefold(), 0)
        return Use(name, used, recent.used(float(limits.window), now), limits)

    # -- time

    def _roll(self, now: float, wall: float) -> None:
        """A new day begins at nothing. A clock that is set back begins none, nor does it when it is
        put right after a moment.
        """
        today = int(wall // DAY_S)
        if today < self._day:
            self._behind = now if self._behind is None else self._behind
            if now - self._behind < _BELIEVED_S:
                return
        elif today > self._day and (self._today or self._addresses_today):
            self._today.clear()
            self._addresses_today.clear()
            self.changes += 1
        self._day, self._behind = today, None

    def _forget_silent(self, window: float, now: float) -> None:
        """Addresses that have used nothing within the window, a few at a time."""
        for _ in range(2):
            address = next(iter(self._addresses_recent))
            if self._addresses_recent[address].used(window, now):
                return
            del self._addresses_recent[address]


def quota_rules(policies: PolicySet) -> list[str]:
    """The names of the quotas in force: `tenant:NAME:tokens`, `tenant:NAME:daily_tokens`."""
    return [
        f"tenant:{name}:{field}"
        for name, tenant in policies.clients.tenants.items()
        for field in ("tokens", _DAILY)
        if getattr(tenant, field) is not None
    ]


def _rule(terms: Terms, field: str) -> str:
    return f"tenant:{terms.path[-1]}:{field}"


def _name_of(caller: Caller) -> str:
    return caller.tenant.casefold() or ANONYMOUS


def _put(kept: OrderedDict[str, T], address: str, value: T) -> None:
    """As the newest; the oldest goes where they are too many."""
    kept[address] = value
    if len(kept) > MOST_ADDRESSES:
        kept.popitem(last=False)


def _refusal(terms: Terms, one: _Standing, wall: float) -> TokensExhausted:
    back = datetime.fromtimestamp(math.ceil(wall + one.wait), UTC)
    return TokensExhausted(
        f"Token quota used up. {one.used} of {plural(one.quota, 'token')} {one.within}",
        retry_after=one.wait,
        policy=terms.line(one.field),
        numbers={
            "rule": _rule(terms, one.field),
            "quota": one.quota,
            "used": one.used,
            "window_seconds": one.window,
            "resets_at": back.isoformat().replace("+00:00", "Z"),
        },
        would_pass=f"the same request in {math.ceil(one.wait)} s",
    )
