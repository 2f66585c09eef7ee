"""How often each client may ask: the rules of `limits.rate_limit`, and tenants' own `requests`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from weakref import WeakKeyDictionary

from mlxd.control.applicant import Applicant, Terms, terms_of
from mlxd.control.ratelimit import Quota, Tallies, Tally
from mlxd.core.caller import Caller
from mlxd.core.errors import RateLimited
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import RateLimit
from mlxd.policy.schema.base import Mode
from mlxd.policy.strict_yaml import Path, dotted

WouldDeny = Callable[[str], None]
"""Told the name of each rule in mode dry_run that would have refused."""
_HEADER = "header:"
_LONGEST = 64
"""Characters of what a client calls itself that are kept as they are."""


@dataclass(frozen=True, slots=True)
class RateState:
    """What one rule leaves a client, for the RateLimit headers."""

    name: str
    requests: int
    """The quota, in `unit`."""
    window: float
    remaining: int
    reset: float
    """Seconds until there is more; 0: all of it is there."""
    unit: str = "requests"


@dataclass(slots=True)
class Counted:
    """Where one request counts."""

    _places: list[tuple[Tally, str]] = field(default_factory=list)
    _at: float = 0.0

    def refund(self) -> None:
        """It counts no more; once is enough."""
        for tally, who in self._places:
            tally.refund(who, self._at)
        self._places.clear()


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule, as it judges one generation of policies."""

    name: str
    """In counters: `rate_limit:NAME`, `tenant:NAME`."""
    shown: str
    """In headers."""
    key: str
    """What it counts apart from each other."""
    quota: Quota
    mode: Mode
    path: Path

    @property
    def window(self) -> float:
        return self.quota.window


class Rates:
    """What counts towards which rule. Decides, and tells nobody: who asks counts refusals.

    A request is judged by the policies it came with; the counts outlive them (`apply`).
    """

    def __init__(self) -> None:
        self._tallies = Tallies()
        self._known: WeakKeyDictionary[PolicySet, dict[Path, tuple[_Rule, ...]]] = (
            WeakKeyDictionary()
        )
        """Of each generation alive, by where the terms of a tenant stand: no more than it names."""

    def take(self, applicant: Applicant, now: float, would_deny: WouldDeny) -> Counted:
        """Count one request in every rule that applies to it, or in none.

        Raises RateLimited; the rule that refuses is among its numbers: of several, the one that
        does so longest, for nobody passes before. What a rule in mode dry_run would refuse, it
        does not count. One that is not rated counts nowhere.
        """
        counted = Counted(_at=now)
        if not applicant.rated:
            return counted
        caller, policies = applicant.caller, applicant.policies
        for rule in self._rules_for(caller, policies):
            who = identity(rule.key, caller, applicant.user)
            if rule.mode == "off" or not who:
                continue
            tally = self._tallies.of(rule)
            if (tally, who) in counted._places:  # edits since have left two rules one tally
                continue
            wait = tally.take(who, rule.quota, now)
            if wait is None:
                counted._places.append((tally, who))
            elif rule.mode == "dry_run":
                would_deny(rule.name)
            else:
                counted.refund()
                refusal = self.refusal(applicant, now)
                assert refusal is not None
                raise refusal
        return counted

    def refusal(self, applicant: Applicant, now: float) -> RateLimited | None:
        """What `take` would raise; counts nothing."""
        if not applicant.rated:
            return None
        refusing = []
        for rule in self._rules_for(applicant.caller, applicant.policies):
            who = identity(rule.key, applicant.caller, applicant.user)
            if rule.mode == "enforce" and who:
                wait = self._tallies.of(rule).wait(who, rule.quota, now)
                if wait > 0:
                    refusing.append((wait, rule, who))
        if not refusing:
            return None
        wait, rule, who = max(refusing, key=lambda one: one[0])
        used = self._tallies.of(rule).counted(who, rule.quota, now)
        return _refusal(rule, applicant.policies, wait, used)

    def states(
        self, caller: Caller, policies: PolicySet, now: float, user: str = ""
    ) -> list[RateState]:
        """What each rule that may refuse this caller leaves it."""
        states = []
        for rule in self._rules_for(caller, policies):
            who = identity(rule.key, caller, user)
            if rule.mode == "enforce" and who:
                quota = rule.quota
                left, reset = self._tallies.of(rule).remaining(who, quota, now)
                states.append(RateState(rule.shown, quota.requests, quota.window, left, reset))
        return states

    def apply(self, new: PolicySet) -> None:
        """New policies are in force. Cannot fail.

        A rule keeps what it has counted under its name, or leaves it to the rule that took its
        place (Tallies.apply). What comes in under the policies before, because it was on its way,
        is still judged by those.
        """
        tenants = [
            _tenants_rule(Terms(tenant, ("clients", "tenants", name), new))
            for name, tenant in new.clients.tenants.items()
        ]
        self._tallies.apply([*_rules(new), *(rule for rule in tenants if rule is not None)])

    def _rules_for(self, caller: Caller, policies: PolicySet) -> tuple[_Rule, ...]:
        """Made once: every answer tells what they leave."""
        terms = terms_of(caller, policies)
        known = self._known.get(policies)
        if known is None:
            known = self._known[policies] = {}
        rules = known.get(terms.path)
        if rules is None:
            own = _tenants_rule(terms)
            rules = known[terms.path] = (*_rules(policies), *((own,) if own is not None else ()))
        return rules


def rate_rules(policies: PolicySet) -> list[str]:
    """The names of the rules that judge at all (mode enforce or dry_run), in order of judgement:
    `rate_limit:NAME`, and `tenant:NAME` for a tenant's own `requests`.
    """
    tenants = policies.clients.tenants.items()
    return [
        *(rule.name for rule in _rules(policies) if rule.mode != "off"),
        *(f"tenant:{name}" for name, tenant in tenants if tenant.requests is not None),
    ]


def rate_rule(rule: RateLimit) -> str:
    """What counters call a rule of `limits.rate_limit`."""
    return f"rate_limit:{rule.name}"


def identity(key: str, caller: Caller, user: str) -> str:
    """What a rule of this `key` counts a request by; empty: it is none of that rule's."""
    match key:
        case "client":
            found = f"key {caller.key}" if caller.key else caller.address
        case "client_ip":
            found = caller.address
        case "api_key":
            found = caller.key
        case "user":
            found = user
        case _ if key.startswith(_HEADER):
            found = caller.headers.get(key.removeprefix(_HEADER).lower(), "")
        case _:
            found = caller.name.casefold()
    return found if len(found) <= _LONGEST else _short(found)


def _short(text: str) -> str:
    """As good as the text itself to tell two apart; clients may send long ones."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _rules(policies: PolicySet) -> Iterator[_Rule]:
    for index, rule in enumerate(policies.limits.rate_limit):
        path: Path = ("limits", "rate_limit", index, "requests")
        yield _Rule(rate_rule(rule), rule.name, rule.key, _quota(rule), rule.mode, path)


def _quota(rule: RateLimit) -> Quota:
    return Quota(rule.requests, float(rule.window), rule.max_keys, rule.algorithm)


def _tenants_rule(terms: Terms) -> _Rule | None:
    """A tenant's own limit of requests; of those without a key, for each address."""
    tenant = terms.tenant
    if tenant.requests is None:
        return None
    name = f"tenant:{terms.path[-1]}"
    quota = Quota(tenant.requests, float(tenant.window))
    return _Rule(name, name, name.casefold(), quota, "enforce", (*terms.path, "requests"))


def _refusal(rule: _Rule, policies: PolicySet, wait: float, used: int) -> RateLimited:
    """It says by what the client was counted, and never its value: others may read it."""
    quota = rule.quota
    spaced = f", one every {quota.interval:g} seconds" if quota.algorithm == "gcra" else ""
    by = "tenant" if rule.name.startswith("tenant:") else rule.key
    return RateLimited(
        f"Rate limit exceeded. Max {quota.requests} requests per {quota.window:g} seconds{spaced}",
        retry_after=wait,
        policy=policies.line(dotted(rule.path)),
        numbers={
            "rule": rule.name,
            "limit": quota.requests,
            "window_seconds": quota.window,
            "used": used,
            "counted_by": by,
            "algorithm": quota.algorithm,
        },
        would_pass=f"the same request in {math.ceil(wait)} s",
    )
