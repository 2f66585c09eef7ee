"""The models that are in memory, as the scheduler sees them."""

from __future__ import annotations

from mlxd.control.residency import Residency
from mlxd.core.models import ModelSpec


class ResidentScene:
    """By the names that models have in the catalogue (ModelCard.original)."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    def in_memory(self, model: str) -> bool:
        return any(map(self._residency.serves, self._specs(model)))

    def delays_others(self, model: str) -> bool:
        return not self.in_memory(model) and self._residency.serves_any()

    def _specs(self, model: str) -> list[ModelSpec]:
        return [one.spec for one in self._residency.residents() if one.card.original == model]
