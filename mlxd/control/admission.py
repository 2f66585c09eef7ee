"""The right to run: rate, then concurrency, then a `Ticket` that is given back once.

A slot is held until the last token, the cancel or the error. Nothing here knows of models in
memory: whether a request waits for one is said by who asks.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Literal

from mlxd.control.names import max_concurrency_of, settings_of
from mlxd.control.ratelimit import Quota, RuleWindows, SlidingWindow
from mlxd.core.clock import Clock
from mlxd.core.errors import (
    Again,
    Draining,
    InvalidRequest,
    MlxdError,
    ModelNotFound,
    Overloaded,
    RateLimited,
)
from mlxd.core.models import canonical
from mlxd.policy.load import PolicySet
from mlxd.policy.schema import RateLimit
from mlxd.policy.strict_yaml import dotted

_SMOOTHING = 0.2
_MAX_QUEUE_WAIT = 30.0

_Names = tuple[str, str]
"""A model's own, and the one that it was called by."""
WouldDeny = Callable[[str], None]
"""Told the name of each rule in mode dry_run that would have refused; see `rules_in_force`."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """One request in one rule's window."""

    window: SlidingWindow
    client: str
    at: float

    def refund(self) -> None:
        self.window.refund(self.client, self.at)


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request, and the policies it runs under until its end."""

    client: str
    model: str
    policies: PolicySet
    admitted: float
    """On the monotonic clock."""
    counted: list[_Counted] = field(default_factory=list, repr=False)
    """Where it counts towards the client's rate."""
    loading: bool = False
    """It waits for its model while another one could serve."""


@dataclass(frozen=True, slots=True)
class RateState:
    """What a client has left, for the RateLimit headers."""

    name: str
    requests: int
    window: float
    remaining: int
    reset: float


@dataclass(slots=True)
class Totals:
    """Counts since the start."""

    processed: int = 0
    rejected: int = 0


def _unheard(rule: str) -> None:
    """For callers to whom it does not matter which rules would have refused."""


class Admission:
    """Says who may run now. Decides on the event loop without awaiting, so a decision is atomic.

    A request is judged by the policies it came with; the counts outlive them (`apply`).
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active: set[Ticket] = set()
        self._none_active = asyncio.Event()
        self._none_active.set()
        self._windows = RuleWindows()
        self._typical_seconds = 1.0
        self.totals = Totals()
        self.refused: Counter[str] = Counter()
        """Refusals by rule; see `rules_in_force` for their names."""
        self.would_deny: Counter[str] = Counter()
        """What rules in mode dry_run would have refused."""
        self.draining = False
        self._changes = 0
        """Of all that may let somebody in who was refused."""
        self._shut: MlxdError | None = None

    @property
    def active(self) -> int:
        return len(self._active)

    def active_by_model(self) -> Counter[str]:
        return Counter(ticket.model for ticket in self._active)

    def shut(self, error: MlxdError | None) -> None:
        """While it is set, every new generation and load raises it; what runs goes on."""
        self._changes += 1
        self._shut = error

    @asynccontextmanager
    async def admit(
        self,
        client: str,
        model: str,
        policies: PolicySet,
        would_deny: WouldDeny = _unheard,
        *,
        loading: bool = False,
        called: str = "",
        rated: bool = True,
    ) -> AsyncIterator[Ticket]:
        """Hold a slot for the length of the block.

        Raises RateLimited, Overloaded, Draining, or what admission is shut for. A request that
        turns out to be wrong in itself does not count towards the client's rate. `loading`: it is
        going to wait for its model while another one could serve; the ticket says when it has it.
        `called`: a copy's name of the model, whose limits count where the model has none. `rated`:
        whether it counts towards the client's rate.
        """
        ticket = self.enter(
            client, model, policies, would_deny, loading=loading, called=called, rated=rated
        )
        try:
            yield ticket
        except (InvalidRequest, ModelNotFound):
            self.leave(ticket, refund=True)
            raise
        finally:
            self.leave(ticket)

    def enter(
        self,
        client: str,
        model: str,
        policies: PolicySet,
        would_deny: WouldDeny = _unheard,
        *,
        loading: bool = False,
        called: str = "",
        rated: bool = True,
    ) -> Ticket:
        """Take a slot, to be given back by `leave`. Raises what `admit` raises.

        Rate first, then concurrency. A rule in mode dry_run that would refuse is told to
        `would_deny`, and the request goes on as if that rule were not there.
        """
        self._check_draining()
        rated_by = (client, policies, would_deny) if rated else None
        try:
            counted = self._count_towards_rate(*rated_by) if rated_by else []
            self._check_shut()
            self._check_slots((model, called or model), policies, would_deny, loading=loading)
        except (RateLimited, Overloaded) as error:
            whatever = isinstance(error, RateLimited)
            until = self._clock.monotonic() + (error.retry_after or 0.0) if whatever else math.inf
            error.again = Again(
                partial(self._repeat, self._changes, until, None if whatever else rated_by),
                whatever=whatever,
            )
            raise
        ticket = Ticket(client, model, policies, self._clock.monotonic(), counted, loading)
        self._active.add(ticket)
        self._none_active.clear()
        return ticket

    def _repeat(
        self, changes: int, until: float, rated_by: tuple[str, PolicySet, WouldDeny] | None
    ) -> bool:
        """Refuse another one like the one that was refused at `changes`, if that still holds."""
        if self.draining or changes != self._changes or self._clock.monotonic() >= until:
            return False
        if rated_by is not None:
            try:
                self._count_towards_rate(*rated_by)
            except RateLimited:
                return False
            self.totals.rejected += 1
        return True

    def leave(self, ticket: Ticket, refund: bool = False) -> None:
        """Give the slot back, and with `refund` the place in the client's rate; once is enough."""
        if ticket not in self._active:
            return
        if refund:
            _refund(ticket.counted)
        self._changes += 1
        self._active.discard(ticket)
        self._ended(ticket)

    def apply(self, new: PolicySet) -> None:
        """New policies are in force. Cannot fail; stops nothing that is under way.

        Counts survive: with a lower max_in_flight new requests are refused until enough have ended,
        and a rate rule keeps what it has counted under its name, or leaves it to the rule that took
        its place (RuleWindows.apply). A longer window counts what is still remembered
        (SlidingWindow). What comes in under the policies before, because it was on its way, is
        still judged by those.
        """
        self._changes += 1
        self._windows.apply(new.limits.rate_limit)

    async def idle(self) -> Literal[True]:
        """Wait until no request is admitted."""
        return await self._none_active.wait()

    def check_open(self) -> None:
        """Raises Draining, or what admission is shut for."""
        self._check_draining()
        self._check_shut()

    def _check_draining(self) -> None:
        if self.draining:
            raise Draining("the daemon is stopping", retry_after=5.0)

    def _check_shut(self) -> None:
        if self._shut is not None:
            raise copy(self._shut)

    def rate_state(self, client: str, policies: PolicySet) -> RateState | None:
        """How much the tightest rule leaves this client."""
        now = self._clock.monotonic()
        states = []
        for rule in policies.limits.rate_limit:
            if rule.mode != "enforce":
                continue
            quota = _quota(rule)
            left, reset = self._windows.of(rule).remaining(client, quota, now)
            states.append(RateState(rule.name, quota.requests, quota.window, left, reset))
        return min(states, key=lambda state: state.remaining, default=None)

    def _count_towards_rate(
        self, client: str, policies: PolicySet, would_deny: WouldDeny
    ) -> list[_Counted]:
        """What a rule refuses, or in mode dry_run would refuse, it does not count."""
        now = self._clock.monotonic()
        counted: list[_Counted] = []
        for index, rule in enumerate(policies.limits.rate_limit):
            if rule.mode == "off":
                continue
            window = self._windows.of(rule)
            wait = window.take(client, _quota(rule), now)
            if wait is None:
                counted.append(_Counted(window, client, now))
            elif rule.mode == "dry_run":
                self._would_deny(_rate_rule(rule), would_deny)
            else:
                _refund(counted)
                self.refused[_rate_rule(rule)] += 1
                raise RateLimited(
                    f"Rate limit exceeded. Max {rule.requests} requests"
                    f" per {float(rule.window):g} seconds",
                    retry_after=max(1.0, wait),
                    policy=policies.line(dotted(("limits", "rate_limit", index, "requests"))),
                )
        return counted

    def _check_slots(
        self, names: _Names, policies: PolicySet, would_deny: WouldDeny, *, loading: bool
    ) -> None:
        mode = policies.limits.concurrency.mode
        if mode == "off":
            return
        for full in self._full(names, policies, loading=loading):
            if mode == "dry_run":
                self._would_deny(full.rule, would_deny)
            else:
                self.refused[full.rule] += 1
                raise self._overloaded(full, policies)

    def _full(self, names: _Names, policies: PolicySet, *, loading: bool) -> Iterator[_Full]:
        """The limits that leave no slot."""
        model = names[0]
        most = policies.limits.concurrency.max_in_flight
        if len(self._active) >= most:
            yield _Full(_CONCURRENCY, _MAX_IN_FLIGHT, _busy(most))
        own = _own_limit(names, policies)
        if own is not None and self.active_by_model()[model] >= own.limit:
            yield _Full(own.rule, own.key, _busy(own.limit))
        waiting = sum(ticket.loading and ticket.model == model for ticket in self._active)
        if loading and waiting >= max(1, most - 1):
            yield _Full(_CONCURRENCY, _MAX_IN_FLIGHT, _keeps_one(model, waiting, most))

    def _would_deny(self, rule: str, would_deny: WouldDeny) -> None:
        self.would_deny[rule] += 1
        would_deny(rule)

    def _overloaded(self, full: _Full, policies: PolicySet) -> Overloaded:
        self.totals.rejected += 1
        return Overloaded(
            full.words, retry_after=self._expected_wait(), policy=policies.line(full.key)
        )

    def _expected_wait(self) -> float:
        """Seconds until a slot is likely free: a typical answer's length over those running."""
        wait = self._typical_seconds / max(1, len(self._active))
        return min(max(1.0, wait), _MAX_QUEUE_WAIT)

    def _ended(self, ticket: Ticket) -> None:
        if not self._active:
            self._none_active.set()
        self.totals.processed += 1
        held = self._clock.monotonic() - ticket.admitted
        self._typical_seconds += _SMOOTHING * (held - self._typical_seconds)


def rules_in_force(policies: PolicySet) -> list[str]:
    """The names of the rules that judge at all (mode enforce or dry_run), in order of judgement.

    `rate_limit:<name>`, `concurrency`, and `concurrency:<model>` with the model as it is written,
    first those of limits.yaml, then those that only models.yaml names.
    """
    limits, models = policies.limits, policies.models
    names = [_rate_rule(rule) for rule in limits.rate_limit if rule.mode != "off"]
    if limits.concurrency.mode == "off":
        return names
    per_model = limits.concurrency.per_model
    limited = set(map(canonical, per_model))
    elsewhere = [
        name
        for name, own in models.models.items()
        if isinstance(own.max_concurrency, int) and canonical(name) not in limited
    ]
    return [*names, _CONCURRENCY, *map(_model_rule, [*per_model, *elsewhere])]


_CONCURRENCY = "concurrency"
_MAX_IN_FLIGHT = "limits.concurrency.max_in_flight"


@dataclass(frozen=True, slots=True)
class _Full:
    """A limit that leaves no slot: its rule, where it is set, and what a client is told."""

    rule: str
    key: str
    words: str


@dataclass(frozen=True, slots=True)
class _Own:
    """One model's own limit."""

    limit: int
    rule: str
    key: str


def _own_limit(names: _Names, policies: PolicySet) -> _Own | None:
    """By limits.concurrency.per_model, else by models.yaml; None: it has none of its own."""
    per_model = policies.limits.concurrency.per_model
    for name, (written, limit) in product(names, per_model.items()):
        if canonical(written) == canonical(name):
            key = dotted(("limits", "concurrency", "per_model", written))
            return _Own(limit, _model_rule(written), key)
    listed = (name for name in names if settings_of(name, policies.models) is not None)
    model = next(listed, names[0])
    number = max_concurrency_of(model, policies.models)
    if number is None:
        return None
    for written, own in policies.models.models.items():
        if canonical(written) == canonical(model) and own.max_concurrency is not None:
            key = dotted(("models", "models", written, "max_concurrency"))
            return _Own(number, _model_rule(written), key)
    return _Own(number, _model_rule(model), "models.defaults.max_concurrency")


def _busy(limit: int) -> str:
    return f"Server overloaded. Max {limit} concurrent requests (server busy, please try again)"


def _keeps_one(model: str, waiting: int, most: int) -> str:
    return (
        f"{waiting} requests wait for model '{model}' to be loaded; of {most} slots one is kept"
        " for the models in memory meanwhile"
    )


def _rate_rule(rule: RateLimit) -> str:
    return f"rate_limit:{rule.name}"


def _model_rule(model: str) -> str:
    return f"{_CONCURRENCY}:{model}"


def _refund(counted: list[_Counted]) -> None:
    for one in counted:
        one.refund()


def _quota(rule: RateLimit) -> Quota:
    return Quota(rule.requests, float(rule.window), rule.max_keys)
