"""Whether a model fits, answered by the decision that a load of it would be given."""

from __future__ import annotations

from msgspec.structs import replace

from mlxd.control.fit import FitReport, Verdict
from mlxd.control.forecasting import Forecaster
from mlxd.control.inventory import Inventory
from mlxd.control.judgement import Judgement
from mlxd.control.ledger import promised_by
from mlxd.control.refusal import refusal
from mlxd.control.resident import Resident
from mlxd.core.errors import MlxdError
from mlxd.core.models import ModelCard
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet


class Fitting:
    """Asks the inventory; changes nothing."""

    def __init__(self, inventory: Inventory, forecasts: Forecaster) -> None:
        self._inventory = inventory
        self._forecasts = forecasts

    def report(
        self,
        card: ModelCard,
        policies: PolicySet,
        context: int | None,
        now: float,
        blocked: MlxdError | None = None,
    ) -> FitReport:
        """Of one model with `context` tokens, else with what a first generation takes.

        `blocked`: why nothing is loaded at all just now.
        """
        resident = self._loaded(card)
        budget = self._needed(card, policies, context)
        judged = self._judge(card, resident, budget, policies)
        verdict = _verdict(judged, loaded=resident is not None)
        refused = refusal(judged, card.name, policies, now) if judged.plan.obstacle else None
        if blocked is not None and resident is None and verdict != "never":
            verdict, refused = "fits_after_wait", blocked
        more = resident is not None and judged.plan.obstacle != "limit"
        own = promised_by(resident.budget) if resident is not None and more else 0
        confidence, observations, error = self._forecasts.confidence(card)
        at = judged.plan.at
        return FitReport(
            model=card.name,
            verdict=verdict,
            needed_bytes=judged.needed + own,
            available_bytes=judged.at_best + own,
            context=context or min(card.context, 2 * policies.memory.reserve.expected_output),
            longest_context=self._longest(card, policies),
            evicts=judged.names if verdict == "fits_after_eviction" else (),
            wait_seconds=max(0.0, at - now) if at is not None else None,
            confidence=confidence,
            observations=observations,
            error_percent=error,
            reason=refused.message if refused is not None else "",
            policy=refused.policy if refused is not None else None,
        )

    def _loaded(self, card: ModelCard) -> Resident | None:
        resident = self._inventory.residents.get(card.spec)
        return resident if resident in self._inventory.present() else None

    def _needed(self, card: ModelCard, policies: PolicySet, context: int | None) -> ipc.Budget:
        first = self._inventory.budget_for(card, policies)
        if context is None:
            return first
        peak = self._forecasts.footprint(card).peak_bytes((), (context,))
        return replace(first, bytes=max(first.bytes, self._forecasts.correct(card, peak)))

    def _judge(
        self, card: ModelCard, resident: Resident | None, budget: ipc.Budget, policies: PolicySet
    ) -> Judgement:
        if resident is None:
            return self._inventory.judge_load(card, policies, budget=budget)
        more = max(0, promised_by(budget) - promised_by(resident.budget))
        return self._inventory.judge_need(resident, more, policies, budget.bytes)

    def _longest(self, card: ModelCard, policies: PolicySet) -> int:
        """Tokens for which there is room with everything gone that is idle."""
        made_for = card.trained_context or card.context
        room = self._inventory.room_for(card, policies)
        if room is None:
            return made_for
        corrected = self._forecasts.correct(card, room) if room > 0 else 0
        budget = room * room // corrected if corrected else 0
        return min(made_for, self._forecasts.footprint(card).longest(budget))


def _verdict(judged: Judgement, *, loaded: bool) -> Verdict:
    if judged.plan.never:
        return "never"
    if judged.plan.obstacle:
        return "fits_after_wait"
    if judged.plan.victims:
        return "fits_after_eviction"
    return "loaded" if loaded else "fits"
