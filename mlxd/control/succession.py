"""The pure decision what becomes of a loaded model when its name leads elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxd.core.models import ModelCard, canonical


@dataclass(frozen=True, slots=True)
class Fate:
    """What one loaded model is from now on."""

    card: ModelCard | None
    """What it is called; None: no name leads to it, so it goes."""
    successor: ModelCard | None = None
    """What its name leads to instead."""


class Succession:
    """The fates of loaded models by the names that there are now."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._by_name = {canonical(card.name): card for card in cards}
        self._by_spec = {card.spec: card for card in reversed(self._by_name.values())}

    def fate(self, loaded: ModelCard) -> Fate:
        """A name whose folder cannot be read now says nothing: its model stays as it is."""
        named = self._by_name.get(canonical(loaded.name))
        if named is not None and named.spec == loaded.spec:
            return Fate(named)
        if named is not None and named.unavailable:
            return Fate(loaded)
        return Fate(self._by_spec.get(loaded.spec), named)
