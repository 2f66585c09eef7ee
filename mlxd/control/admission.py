"""The right to run: rate, then concurrency, then a `Ticket` that is given back once.

A slot is held until the last token, the cancel or the error. Nothing here knows of models in
memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from mlxd.control.ratelimit import Quota, SlidingWindow
from mlxd.core.clock import Clock
from mlxd.core.errors import Draining, InvalidRequest, ModelNotFound, Overloaded, RateLimited
from mlxd.core.models import canonical
from mlxd.policy.load import PolicySet
from mlxd.policy.schema import RateLimit
from mlxd.policy.strict_yaml import dotted

_SMOOTHING = 0.2
_MAX_QUEUE_WAIT = 30.0


@dataclass(slots=True, eq=False)
class Ticket:
    """One admitted request, and the policies it runs under until its end."""

    client: str
    model: str
    policies: PolicySet
    admitted: float
    """On the monotonic clock."""


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


class Admission:
    """Says who may run now. Decides on the event loop without awaiting, so a decision is atomic."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._active: set[Ticket] = set()
        self._none_active = asyncio.Event()
        self._none_active.set()
        self._windows: dict[str, SlidingWindow] = {}
        self._typical_seconds = 1.0
        self.totals = Totals()
        self.draining = False

    @property
    def active(self) -> int:
        return len(self._active)

    def active_by_model(self) -> Counter[str]:
        return Counter(ticket.model for ticket in self._active)

    @asynccontextmanager
    async def admit(self, client: str, model: str, policies: PolicySet) -> AsyncIterator[Ticket]:
        """Hold a slot for the length of the block.

        Raises RateLimited, Overloaded, Draining. A request that turns out to be wrong in itself
        does not count towards the client's rate.
        """
        self.check_open()
        counted = self._count_towards_rate(client, policies)
        self._check_slots(model, policies)
        ticket = Ticket(client, model, policies, self._clock.monotonic())
        self._active.add(ticket)
        self._none_active.clear()
        try:
            yield ticket
        except (InvalidRequest, ModelNotFound):
            for name, at in counted:
                self._windows[name].refund(client, at)
            raise
        finally:
            self._active.discard(ticket)
            self._ended(ticket)

    async def idle(self) -> Literal[True]:
        """Wait until no request is admitted."""
        return await self._none_active.wait()

    def check_open(self) -> None:
        """Raises Draining."""
        if self.draining:
            raise Draining("the daemon is stopping", retry_after=5.0)

    def rate_state(self, client: str, policies: PolicySet) -> RateState | None:
        """How much the tightest rule leaves this client."""
        now = self._clock.monotonic()
        states = []
        for rule in policies.limits.rate_limit:
            if rule.mode != "enforce":
                continue
            quota = _quota(rule)
            left, reset = self._window(rule.name).remaining(client, quota, now)
            states.append(RateState(rule.name, quota.requests, quota.window, left, reset))
        return min(states, key=lambda state: state.remaining, default=None)

    def _count_towards_rate(self, client: str, policies: PolicySet) -> list[tuple[str, float]]:
        now = self._clock.monotonic()
        counted: list[tuple[str, float]] = []
        for index, rule in enumerate(policies.limits.rate_limit):
            if rule.mode == "off":
                continue
            wait = self._window(rule.name).take(client, _quota(rule), now)
            if wait is None:
                counted.append((rule.name, now))
            elif rule.mode == "enforce":
                for name, at in counted:
                    self._windows[name].refund(client, at)
                raise RateLimited(
                    f"Rate limit exceeded. Max {rule.requests} requests"
                    f" per {float(rule.window):g} seconds",
                    retry_after=max(1.0, wait),
                    policy=policies.line(dotted(("limits", "rate_limit", index, "requests"))),
                )
        return counted

    def _check_slots(self, model: str, policies: PolicySet) -> None:
        concurrency = policies.limits.concurrency
        if len(self._active) >= concurrency.max_in_flight:
            raise self._overloaded(concurrency.max_in_flight, policies, ("max_in_flight",))
        for written, limit in concurrency.per_model.items():
            if canonical(written) == canonical(model) and self.active_by_model()[model] >= limit:
                raise self._overloaded(limit, policies, ("per_model", written))

    def _overloaded(self, limit: int, policies: PolicySet, key: tuple[str, ...]) -> Overloaded:
        self.totals.rejected += 1
        return Overloaded(
            f"Server overloaded. Max {limit} concurrent requests (server busy, please try again)",
            retry_after=self._expected_wait(),
            policy=policies.line(dotted(("limits", "concurrency", *key))),
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

    def _window(self, name: str) -> SlidingWindow:
        return self._windows.setdefault(name, SlidingWindow())


def _quota(rule: RateLimit) -> Quota:
    return Quota(rule.requests, float(rule.window), rule.max_keys)
