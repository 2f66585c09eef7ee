"""The pure decision what becomes of a loaded model when its name leads elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxd.control.scan import Scope
from mlxd.core.models import ModelCard, canonical
from mlxd.policy.schema import Model, Models

SHAPING = ("path", "adapter", "chat_template", "trust_remote_code", "kv_bits")
"""The settings of one model that make another worker of it."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What of the policies decides which worker a name leads to; compared with `==`."""

    scope: Scope
    shapes: frozenset[tuple[str, tuple[object, ...]]]

    @classmethod
    def of(cls, models: Models) -> Meaning:
        plain = shape_of(Model())
        shapes = {(canonical(name), shape_of(own)) for name, own in models.models.items()}
        return cls(Scope.of(models), frozenset(one for one in shapes if one[1] != plain))


def shape_of(own: Model) -> tuple[object, ...]:
    """The values of SHAPING, in that order."""
    return own.path, own.adapter, own.chat_template, own.trust_remote_code, own.kv_bits


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
