"""The models in memory as a decision sees them: who is there, who may go, what is free.

Asking changes nothing, so what a plan tells is what a load will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from msgspec.structs import replace as changed

from mlxd.control.eviction import (
    Candidate,
    Plan,
    Protection,
    Want,
    in_order,
    plan_eviction,
    plan_excess,
)
from mlxd.control.forecasting import Forecaster
from mlxd.control.judgement import Judgement, Spares
from mlxd.control.ledger import (
    PROCESS_BYTES,
    Account,
    first_budget,
    free_bytes,
    held_by,
    kept_by,
    left_beside,
    promised_by,
    reserve_of,
)
from mlxd.control.lending import loans
from mlxd.control.memory import MemoryReading
from mlxd.control.model_settings import settings_for
from mlxd.control.process_limit import private_of
from mlxd.control.resident import Evicts, Resident
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet

_RECENT_SECONDS = 1.0
"""How old a reading may be for what is only advice."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Memory at one moment, and what the models' workers held then."""

    at: float
    reading: MemoryReading
    held: dict[ModelSpec, int]


class Inventory:
    """Knows every resident; decides by the policies it is given, with a reading of its own."""

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        read_memory: Callable[[], MemoryReading | None],
        forecasts: Forecaster,
    ) -> None:
        self.residents: dict[ModelSpec, Resident] = {}
        self.preloaded: frozenset[ModelSpec] = frozenset()
        self.working_set = 0
        """What the GPU recommends to hold at most, once a worker has said so."""
        self._read_memory = read_memory
        self._seen: Seen | None = None
        self.private_of: Callable[[int], int] = private_of
        """Tells what a process has taken before its engine says so."""
        self._supervisor = supervisor
        self._clock = clock
        self._forecasts = forecasts

    def read_memory(self) -> MemoryReading | None:
        """Now. What was held at this moment is kept, for the death of one that holds it."""
        reading = self._read_memory()
        if reading is not None:
            self._seen = Seen(self._clock.monotonic(), reading, self._held())
        return reading

    def _recent(self) -> MemoryReading | None:
        """As `read_memory`, or that of a moment ago with what workers have taken since: a request
        ends without a reading, and each takes a quarter of a millisecond.
        """
        seen = self._seen
        if seen is None or self._clock.monotonic() - seen.at >= _RECENT_SECONDS:
            return self.read_memory()
        grown = sum(self._held().values()) - sum(seen.held.values())
        return replace(seen.reading, available=max(0, seen.reading.available - grown))

    def _held(self) -> dict[ModelSpec, int]:
        return {spec: held_by(self._holder(r)) for spec, r in self.residents.items()}

    def expected(self, spec: ModelSpec) -> tuple[float, int] | None:
        """What should be available once a worker that has just died is gone, by the last reading,
        and what it held then. None: nothing is known of it.
        """
        if self._seen is None or not (held := self._seen.held.get(spec, 0)):
            return None
        others = [r for r in self.residents.values() if r.spec != spec]
        now = sum(held_by(self._holder(r)) for r in others)
        grown = now - sum(self._seen.held.get(r.spec, 0) for r in others)
        return self._seen.reading.available + held - max(0, grown), held

    def worker_of(self, resident: Resident) -> Worker | None:
        """The worker that serves it; None while there is none."""
        return self._supervisor.serving(resident.spec)

    def present(self) -> list[Resident]:
        """Those that take room in memory, or are about to."""
        return [
            r
            for r in self.residents.values()
            if r.reserved or r.remains is not None or self._holder(r)
        ]

    def _holder(self, resident: Resident) -> Worker | None:
        """The worker that serves it, or one that does no more and is not over yet."""
        return self.worker_of(resident) or resident.worker

    def loading(self) -> list[str]:
        """The models that take room that they did not have before."""
        return [r.card.name for r in self.residents.values() if r.reserved]

    def account(self, resident: Resident) -> Account:
        worker = self._holder(resident)
        if worker is not None and not resident.reserved:
            budget, kept = resident.budget, kept_by(worker)
            lent = budget.prefix_bytes if self.worker_of(resident) else 0  # one that dies is deaf
            held = held_by(worker) - kept
            return Account(promised_by(budget), held, kept, lent, _weights(resident.card))
        promised = promised_by(resident.budget) + PROCESS_BYTES
        if not resident.reserved:
            return Account(promised, resident.remains or 0)
        return Account(promised, min(promised, self._taken_by(resident)))

    def _taken_by(self, resident: Resident) -> int:
        """Of what a load was promised, the bytes that are already missing from what is there."""
        loading = [w for w in self._supervisor.workers() if w.spec == resident.spec]
        return sum(self.private_of(worker.pid) for worker in loading)

    def free(self, policies: PolicySet, without: ModelSpec | None = None) -> int | None:
        """Bytes for a new promise; below 0 where there are too many. None: nobody can tell.

        `without`: a model whose place is for what is promised.
        """
        accounts = [self.account(r) for r in self.present() if r.spec != without]
        return self._free(self.read_memory(), policies, accounts)

    def _free(
        self, reading: MemoryReading | None, policies: PolicySet, accounts: Sequence[Account]
    ) -> int | None:
        reserve = reserve_of(policies.memory, reading.total) if reading is not None else 0
        return free_bytes(reading, reserve, accounts, self.working_set)

    def borrowers(self) -> list[Resident]:
        """Those whose workers could keep beginnings of prompts."""
        return [r for r in self.present() if not r.reserved and _answers(self.worker_of(r))]

    def loans(self, policies: PolicySet, left: float, beside: int = 0) -> dict[ModelSpec, int]:
        """What each of these may keep, with a promise of so many bytes more."""
        borrowers = {r.spec: self.account(r) for r in self.borrowers()}
        if not borrowers:
            return {}
        others = [self.account(r) for r in self.present() if r.spec not in borrowers]
        reading = self.read_memory()
        free = self._free(reading, policies, [*borrowers.values(), *others])
        return loans(
            policies.memory,
            reading,
            free - beside if free is not None else None,
            borrowers,
            others=beside + sum(account.open for account in others),
            left=left,
        )

    def candidate(
        self,
        resident: Resident,
        policies: PolicySet,
        evicts: Evicts = Evicts.IDLE,
        wanted: ModelSpec | None = None,
    ) -> Candidate:
        """`wanted`: what it would leave for; time protects nobody from their successor."""
        followed = wanted is not None and resident.successor == wanted
        own = settings_for(resident.card, policies.models)
        preloaded = resident.spec in self.preloaded
        spared = evicts is Evicts.NOBODY or (evicts is Evicts.UNLISTED and preloaded)
        return Candidate(
            key=resident.spec,
            frees=self.account(resident).share + PROCESS_BYTES,
            weights=_weights(resident.card),
            in_use=resident.in_use or spared,
            last_used=-math.inf if followed else resident.last_used,
            loaded_at=-math.inf if followed else resident.loaded_at,
            use_count=resident.use_count,
            pinned=own is not None and own.pinned,
            preloaded=preloaded,
            priority=own.priority if own is not None else "normal",
        )

    def budget_for(self, card: ModelCard, policies: PolicySet) -> ipc.Budget:
        """What a model is promised for its load, and what it could have at best."""
        first = first_budget(self._forecasts.load_bytes(card, policies), policies.memory)
        return self.with_most(first, card.spec, policies)

    def budget_of(self, resident: Resident, policies: PolicySet) -> ipc.Budget:
        """What a loaded model is promised at first."""
        needed = self._forecasts.working_bytes(resident.card, policies)
        return first_budget(needed, policies.memory)

    def with_most(self, budget: ipc.Budget, spec: ModelSpec, policies: PolicySet) -> ipc.Budget:
        """The budget, saying what could be granted at best, were everything else idle."""
        limit = policies.memory.worker_limits.mlx_memory_limit
        bounds = [] if limit == "auto" else [int(limit)]
        present = self.present()
        free = self._free(self._recent(), policies, [self.account(r) for r in present])
        if free is not None:
            shares = self._given_back(present, spec)
            bounds.append(max(budget.bytes, free + shares - budget.cache_bytes))
        return changed(budget, most=min(bounds, default=0))

    def room_for(self, card: ModelCard, policies: PolicySet) -> int | None:
        """Bytes that one model's budget could have with everything gone that is idle."""
        limit = policies.memory.worker_limits.mlx_memory_limit
        bounds = [] if limit == "auto" else [int(limit)]
        free = self.free(policies)
        if free is not None:
            first = first_budget(self._forecasts.load_bytes(card, policies), policies.memory)
            idle = [r for r in self.present() if r.spec == card.spec or not r.in_use]
            shares = self._given_back(idle, card.spec)
            bounds.append(max(0, free + shares - first.cache_bytes))
        return min(bounds, default=None)

    def _given_back(self, residents: list[Resident], spec: ModelSpec) -> int:
        """Bytes that there would be for one model, were these gone or its own."""
        others = sum(resident.spec != spec for resident in residents)
        return sum(self.account(r).share for r in residents) + others * PROCESS_BYTES

    def judge_load(
        self,
        card: ModelCard,
        policies: PolicySet,
        evicts: Evicts = Evicts.IDLE,
        budget: ipc.Budget | None = None,
    ) -> Judgement:
        """What is to be done for a model that is not in memory.

        It takes `budget`, else its first one.
        """
        if budget is None:
            budget = first_budget(self._forecasts.load_bytes(card, policies), policies.memory)
        if beyond := _beyond_limit(max(_weights(card), budget.bytes), policies):
            return beyond
        want = Want(
            bytes=PROCESS_BYTES + promised_by(budget),
            free=self.free(policies, without=card.spec),
            weights=_weights(card),
            **_bounds(policies),
        )
        judged = self._judge(want, card.spec, policies, evicts)
        bare = first_budget(self._forecasts.bare_bytes(card), policies.memory)
        return replace(judged, reserve=left_beside(bare, judged.present))

    def judge_need(
        self, resident: Resident, more: int, policies: PolicySet, size: int = 0
    ) -> Judgement:
        """What is to be done for a loaded model that wants `more` bytes than it has.

        `size`: what its budget would be then, where that is not known to be within its limit.
        """
        if beyond := _beyond_limit(size, policies):
            return beyond
        want = Want(bytes=more, free=self.free(policies), models=0)
        return self._judge(want, resident.spec, policies, Evicts.IDLE)

    def _judge(self, want: Want, spec: ModelSpec, policies: PolicySet, evicts: Evicts) -> Judgement:
        protection = protection_of(policies)
        others = [
            self.candidate(r, policies, evicts, spec) for r in self.present() if r.spec != spec
        ]
        plan = plan_eviction(others, want, protection, self._clock.monotonic())
        leaving = [c for c in others if c.key in (plan.victims or plan.in_the_way)]
        gone = others if plan.never else leaving
        if plan.obstacle == "weights" and want.max_weights is not None:
            needed, room = want.weights, want.max_weights - sum(c.weights for c in others)
            at_best = room + sum(c.weights for c in gone)
        else:
            needed, room = want.bytes, want.free or 0
            at_best = room + sum(c.frees for c in gone)
        return Judgement(
            plan, needed, max(0, room), max(0, at_best),
            tuple(r.card.name for r in self.named(plan)),
            _spares(plan, leaving, protection),
            lent=self._lent(want),
        )  # fmt: skip

    def _lent(self, want: Want) -> int:
        """What of it has to be given back before."""
        if want.free is None or want.bytes <= 0:
            return 0
        lent = sum(self.account(resident).lendable for resident in self.present())
        return max(0, want.bytes - (want.free - lent)) if lent else 0

    def plan_excess(self, policies: PolicySet, now: float) -> Plan:
        """What is beyond `models.max_loaded` and `models.max_loaded_bytes`, as of a moment."""
        want = Want(bytes=0, free=None, models=0, **_bounds(policies))
        loaded = [self.candidate(r, policies) for r in self.present()]
        return plan_excess(loaded, want, protection_of(policies), now)

    def evictable(self, policies: PolicySet, *, settling: bool) -> list[Resident]:
        """What may be evicted now, in order. `settling`: what was just loaded may not."""
        protection = protection_of(policies)
        if not settling:
            protection = Protection(protection.after_use)
        loaded = [self.candidate(r, policies) for r in self.present()]
        now = self._clock.monotonic()
        return [self._by_key(c.key) for c in in_order(loaded, protection, now)]

    def named(self, plan: Plan) -> list[Resident]:
        """Those who leave, or would have to, in order."""
        return [self._by_key(key) for key in plan.victims or plan.in_the_way]

    def _by_key(self, key: object) -> Resident:
        return next(r for r in self.residents.values() if r.spec == key)


def _answers(worker: Worker | None) -> bool:
    return worker is not None and worker.ready is not None and worker.ready.answers


def _weights(card: ModelCard) -> int:
    """Bytes, with those of the model that drafts for it: each worker has its own."""
    return card.size_bytes + (card.draft.size_bytes if card.draft is not None else 0)


class _Bounds(TypedDict):
    max_models: int | None
    max_weights: int | None


def _bounds(policies: PolicySet) -> _Bounds:
    count, weights = policies.models.max_loaded, policies.models.max_loaded_bytes
    return {
        "max_models": None if count == "auto" else count,
        "max_weights": None if weights == "auto" else int(weights),
    }


def _beyond_limit(size: int, policies: PolicySet) -> Judgement | None:
    """Of a budget that no worker may have."""
    limit = policies.memory.worker_limits.mlx_memory_limit
    if limit == "auto" or size <= limit:
        return None
    return Judgement(Plan((), "limit", never=True), size, int(limit), int(limit))


def _spares(plan: Plan, leaving: Sequence[Candidate], protection: Protection) -> Spares:
    if plan.at is None:
        return ""
    used = max(candidate.last_used + protection.after_use for candidate in leaving)
    return "protect_recent" if used >= plan.at else "min_residency"


def protection_of(policies: PolicySet) -> Protection:
    eviction = policies.memory.eviction
    return Protection(float(eviction.protect_recent), float(eviction.min_residency))
