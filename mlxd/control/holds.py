"""How long slots are held: what a wait is expected to last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

_SMOOTHING = 0.2
_MOST_MODELS = 1000


class Holds:
    """Moving averages: of all, and of each model."""

    def __init__(self) -> None:
        self._all = 1.0
        self._models: OrderedDict[str, float] = OrderedDict()

    def note(self, model: str, seconds: float) -> None:
        """A slot was given back after so long."""
        self._all += _SMOOTHING * (seconds - self._all)
        before = self._models.pop(model, seconds)
        self._models[model] = before + _SMOOTHING * (seconds - before)
        if len(self._models) > _MOST_MODELS:
            self._models.popitem(last=False)

    def typical(self, running: Mapping[str, int]) -> float:
        """Seconds, of those that run now, by their models."""
        count = sum(running.values())
        if not count:
            return self._all
        held = (self._models.get(model, self._all) * n for model, n in running.items())
        return sum(held) / count
