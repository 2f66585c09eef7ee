"""How long slots are held: what a wait is expected to last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

_SMOOTHING = 0.2
_MOST_MODELS = 1000


class Holds:
    """Moving averages: of all, and of each model. Of a model that gave none back yet, what is
    expected of those that have one.
    """

    def __init__(self) -> None:
        self._all = 1.0
        self._models: OrderedDict[str, float] = OrderedDict()
        self._expected: OrderedDict[str, float] = OrderedDict()

    def known(self, model: str) -> bool:
        """Whether one of its slots was given back, lately."""
        return model in self._models

    def forget(self, model: str) -> None:
        """What was learned of it so far says nothing any more."""
        self._models.pop(model, None)
        self._expected.pop(model, None)

    def expect(self, model: str, seconds: float) -> None:
        """A slot that somebody took is likely to be given back after so long."""
        _smooth(self._expected, model, seconds)

    def note(self, model: str, seconds: float) -> None:
        """A slot was given back after so long."""
        self._all += _SMOOTHING * (seconds - self._all)
        _smooth(self._models, model, seconds)
        self._expected.pop(model, None)

    def typical(self, running: Mapping[str, int]) -> float:
        """Seconds, of those that run now, by their models."""
        count = sum(running.values())
        if not count:
            return self._all
        return sum(self._of(model) * n for model, n in running.items()) / count

    def _of(self, model: str) -> float:
        return self._models.get(model, self._expected.get(model, self._all))


def _smooth(averages: OrderedDict[str, float], model: str, seconds: float) -> None:
    before = averages.pop(model, seconds)
    averages[model] = before + _SMOOTHING * (seconds - before)
    if len(averages) > _MOST_MODELS:
        averages.popitem(last=False)
