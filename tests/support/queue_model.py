"""What a scheduler must decide, by counting alone: lists, and no queue that is in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mlxd.control.applicant import Applicant, terms_of
from mlxd.control.place import Place
from mlxd.control.quotas import Quotas
from mlxd.control.rates import Rates
from mlxd.control.scheduler import Scheduler
from mlxd.core.caller import PRIORITIES, Caller, Priority
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.clients import Tenant

CLASSES: tuple[Priority, ...] = PRIORITIES


@dataclass
class Models:
    """A scene: which models are in memory."""

    cold: set[str] = field(default_factory=set)
    others: bool = True

    def in_memory(self, model: str) -> bool:
        return model not in self.cold

    def delays_others(self, model: str) -> bool:
        return self.others and model in self.cold


_BASE: list[PolicySet] = []


def policies_of(
    *,
    classes: dict[str, dict[str, Any]] | None = None,
    tenants: dict[str, dict[str, Any]] | None = None,
    rates: tuple[tuple[int, float], ...] = (),
    ageing: float = 20.0,
    queue: float = 30.0,
    **concurrency: Any,
) -> PolicySet:
    """Made without files, for it is made often."""
    base = load() if not _BASE else _BASE[0]
    _BASE[:] = [base]
    limits, clients = base.limits, base.clients
    rule = limits.rate_limit[0]
    limits = limits.model_copy(
        update={
            "concurrency": limits.concurrency.model_copy(update=concurrency),
            "rate_limit": tuple(
                rule.model_copy(update={"name": f"r{n}", "requests": requests, "window": window})
                for n, (requests, window) in enumerate(rates)
            ),
        }
    )
    priorities = clients.priorities
    changed: dict[str, Any] = {
        name: getattr(priorities, name).model_copy(update=values)
        for name, values in (classes or {}).items()
    }
    named = {name: Tenant().model_copy(update=of) for name, of in (tenants or {}).items()}
    clients = clients.model_copy(
        update={
            "priorities": priorities.model_copy(update={"ageing": ageing, **changed}),
            "tenants": named,
        }
    )
    timeouts = base.timeouts.model_copy(update={"queue": queue})
    whole = base.policies.model_copy(
        update={"limits": limits, "clients": clients, "timeouts": timeouts}
    )
    return replace(base, policies=whole)


def of_tenant(
    tenant: str,
    policies: PolicySet,
    model: str = "m",
    priority: Priority | None = None,
    cost: float = 1.0,
) -> Applicant:
    return Applicant(Caller(f"at {tenant}", "", tenant), policies, model, "", priority, cost)


def scheduler_of(policies: PolicySet, models: Models | None = None) -> Scheduler:
    return Scheduler(policies, models or Models(), Rates(), Quotas())


def unheard(rule: str) -> None:
    raise AssertionError(rule)


def waiting(scheduler: Scheduler, *applicants: Applicant, now: float = 0.0) -> list[Place]:
    places = [scheduler.ask(one, now, 0.0, unheard) for one in applicants]
    assert not any(place.started for place in places)
    return places


def served(scheduler: Scheduler, first: Place, count: int, now: float = 0.0) -> list[Place]:
    """Who goes in turn, when each leaves at once."""
    order = []
    for _ in range(count):
        scheduler.leave(first, now, 0.0)
        (first,) = scheduler.turn(now)
        order.append(first)
    return order


def full(policies: PolicySet, models: Models | None = None) -> tuple[Scheduler, Place]:
    """A scheduler whose only slot is taken."""
    scheduler = scheduler_of(policies, models)
    return scheduler, scheduler.ask(of_tenant("x", policies), 0.0, 0.0, unheard)


class Counting:
    """Who runs and who waits, as far as counting tells."""

    def __init__(self, policies: PolicySet, models: Models) -> None:
        self.policies = policies
        self.models = models
        self.running: list[Place] = []
        self.waiting: list[Place] = []
        self.counted: dict[tuple[str, str], list[float]] = {}
        self.since: dict[Priority, float] = {}
        """Since when a class that waits has got no slot."""
        self.overdue: dict[Priority, int] = dict.fromkeys(CLASSES, 0)

    # -- what must come of one that asks

    def verdict(self, applicant: Applicant, now: float) -> str:
        """The key of the policy that refuses it; "run" or "wait"."""
        refusing = []
        for index, rule in enumerate(applicant.policies.limits.rate_limit):
            times = self.counted.setdefault((rule.name, applicant.caller.name), [])
            times[:] = [at for at in times if at > now - rule.window]
            if len(times) >= rule.requests:
                refusing.append((times[-rule.requests] + rule.window, -index))
        if refusing:
            return f"limits.rate_limit[{-max(refusing)[1]}].requests"
        full = self.full(applicant)
        verdict = "run" if full is None else self._in_queue(applicant, full)
        if not verdict.endswith(".max_in_flight") or not verdict.startswith("clients"):
            for rule in applicant.policies.limits.rate_limit:
                self.counted[rule.name, applicant.caller.name].append(now)
        return verdict

    def full(self, applicant: Applicant) -> str | None:
        """The first limit that leaves it no slot."""
        limits, running = self.policies.limits.concurrency, self.running
        if len(running) >= limits.max_in_flight:
            return "limits.concurrency.max_in_flight"
        own = limits.per_model.get(applicant.model)
        if own is not None and sum(p.model == applicant.model for p in running) >= own:
            return f"limits.concurrency.per_model.{applicant.model}"
        klass = self.klass(applicant)
        cap = self.cap(klass)
        if cap is not None and sum(p.klass == klass for p in running) >= cap[0]:
            return cap[1]
        loading = sum(p.loading and p.model == applicant.model for p in running)
        delays = self.models.delays_others(applicant.model)
        if delays and loading >= max(1, limits.max_in_flight - 1):
            return "limits.concurrency.max_in_flight"
        terms = terms_of(applicant.caller, self.policies)
        most = terms.tenant.max_in_flight
        held = sum(p.client == applicant.caller.name for p in running)
        if most is not None and held >= most:
            return f"clients.tenants.{applicant.caller.tenant}.max_in_flight"
        return None

    def klass(self, applicant: Applicant) -> Priority:
        return applicant.klass

    def cap(self, klass: Priority) -> tuple[int, str] | None:
        classes = self.policies.clients.priorities
        own, most = getattr(classes, klass), self.policies.limits.concurrency.max_in_flight
        found = []
        if own.max_share < 1:
            found.append((max(1, math.ceil(own.max_share * most)), "max_share"))
        if not own.borrow:
            weights = sum(getattr(classes, name).weight for name in CLASSES)
            found.append((max(1, math.floor(most * own.weight / weights)), "borrow"))
        if not found:
            return None
        most, key = min(found, key=lambda pair: pair[0])
        return most, f"clients.priorities.{klass}.{key}"

    def _in_queue(self, applicant: Applicant, full: str) -> str:
        limits, klass = self.policies.limits.concurrency, self.klass(applicant)
        own = getattr(self.policies.clients.priorities, klass).queue
        own = limits.max_waiting if own == "auto" else own
        if limits.max_waiting == 0 or (own == 0 and full.startswith("clients.tenants.")):
            return full
        if own == 0:
            return f"clients.priorities.{klass}.queue"
        if len(self.waiting) >= limits.max_waiting:
            return "limits.concurrency.max_waiting"
        tokens = sum(p.cost for p in self.waiting) + applicant.cost
        if self.waiting and tokens > limits.max_waiting_tokens:
            return "limits.concurrency.max_waiting_tokens"
        if sum(p.klass == klass for p in self.waiting) >= own:
            return f"clients.priorities.{klass}.queue"
        return "wait"

    # -- what has come of it

    def waits(self, place: Place, now: float) -> None:
        if not any(p.klass == place.klass for p in self.waiting):
            self.since[place.klass] = now
            self.overdue[place.klass] = 0
        self.waiting.append(place)

    def starts(self, place: Place, now: float) -> None:
        """Checks that it may, and that no class is kept waiting for it too long."""
        assert place not in self.running
        assert self.full(place.applicant) is None
        ageing = float(self.policies.clients.priorities.ageing)
        for klass in CLASSES:
            late = now - self.since.get(klass, now) > ageing
            old = [one for one in self.of(klass) if now - one.came > ageing]
            if klass != place.klass and late and any(map(self.may, old)):
                self.overdue[klass] += 1
                assert self.overdue[klass] <= 2
        self.overdue[place.klass] = 0
        self.since[place.klass] = now
        if place in self.waiting:
            self.waiting.remove(place)
        self.running.append(place)

    def ends(self, place: Place) -> None:
        (self.running if place in self.running else self.waiting).remove(place)

    def of(self, klass: Priority) -> list[Place]:
        return [p for p in self.waiting if p.klass == klass]

    def may(self, place: Place) -> bool:
        return self.full(place.applicant) is None
