"""What residency asks of forecasts, and the simplest answer: a model takes what its files weigh."""

from __future__ import annotations

from typing import Protocol

from mlxd.control.fit import Confidence
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelCard
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet


class Forecaster(Protocol):
    """Predicts what a model will take, and learns from what it took."""

    def footprint(self, card: ModelCard) -> Footprint: ...

    def measured(self, card: ModelCard) -> Footprint | None:
        """What need not be measured when the model is loaded again."""
        ...

    def load_bytes(self, card: ModelCard, policies: PolicySet) -> int:
        """The most that loading holds, or what the first generation takes beside the weights."""
        ...

    def bare_bytes(self, card: ModelCard) -> int:
        """What loading holds, where nothing is kept for a generation."""
        ...

    def working_bytes(self, card: ModelCard, policies: PolicySet) -> int:
        """What the first generation takes, weights included."""
        ...

    def correct(self, card: ModelCard, predicted: int) -> int:
        """A prediction by the footprint, with what was learned of earlier ones."""
        ...

    def load_seconds(self, card: ModelCard) -> float | None:
        """How long a load of it takes, once there is a process; None: nobody knows."""
        ...

    def loaded(self, card: ModelCard, ready: ipc.Ready) -> None: ...

    def observed(self, card: ModelCard, observed: ipc.Observed) -> None: ...

    def confidence(self, card: ModelCard) -> tuple[Confidence, int, float | None]:
        """The kind, the number of observations, their mean error in percent."""
        ...


class ByWeight:
    """Knows the weights and nothing else; learns nothing."""

    def footprint(self, card: ModelCard) -> Footprint:
        return Footprint(card.size_bytes, ())

    def measured(self, card: ModelCard) -> Footprint | None:
        return None

    def load_bytes(self, card: ModelCard, policies: PolicySet) -> int:
        return card.size_bytes

    def bare_bytes(self, card: ModelCard) -> int:
        return card.size_bytes

    def working_bytes(self, card: ModelCard, policies: PolicySet) -> int:
        return card.size_bytes

    def correct(self, card: ModelCard, predicted: int) -> int:
        return predicted

    def load_seconds(self, card: ModelCard) -> float | None:
        return None

    def loaded(self, card: ModelCard, ready: ipc.Ready) -> None:
        pass

    def observed(self, card: ModelCard, observed: ipc.Observed) -> None:
        pass

    def confidence(self, card: ModelCard) -> tuple[Confidence, int, float | None]:
        return "computed", 0, None
