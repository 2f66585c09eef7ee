"""What each name means: from what a user types to a `ModelCard`, by one scan. Waits for nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from mlxd.control.scan import GUIDE, Scan, Scope
from mlxd.core.models import ModelCard, canonical
from mlxd.policy.schema import Model, Models

DEFAULT = "default"


class Names:
    """The names under one set of policies, as far as one scan can tell.

    After a scan for other folders it has only the cards that are right all the same (`complete` is
    False), and does not answer what a missing card could change.
    """

    def __init__(
        self,
        scan: Scan,
        models: Models,
        default: str | None,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        """`default` is the last one chosen; it is kept until it disappears. `copies`: names that a
        client gave to models, each with the name of the model.
        """
        scope = Scope.of(models)
        self.models = models
        self.complete = scan.scope == scope
        own = {canonical(name): model for name, model in reversed([*models.models.items()])}
        self.cards = {
            canonical(find.card.name): _within(
                find.card, own.get(canonical(find.place.name)), models
            )
            for find in scan.certain(scope)
        }
        for name, target in (copies or {}).items():
            card = self._by_name(canonical(target))
            if name not in self.cards and card is not None:
                guide = self.cards.popitem()
                self.cards[name] = replace(card, name=name)
                self.cards[guide[0]] = guide[1]
        self.default = self._default(default)

    def find(self, name: str) -> ModelCard | None:
        wanted = canonical(name)
        for model, declared in self.models.models.items():
            if wanted in map(canonical, declared.aliases):
                wanted = canonical(model)
        chain = self.models.chains.get(wanted)
        for link in chain or ():
            card = self._by_name(canonical(link))
            if card is not None and not card.unavailable:
                return card
            if not self.complete:
                return None
        if wanted == DEFAULT and not chain:
            if self.default is None and not self.complete:
                return None
            wanted = canonical(self.default or GUIDE)
        return self._by_name(wanted)

    def near(self, name: str) -> list[str]:
        """Names that look like `name`."""
        keys = difflib.get_close_matches(canonical(name), self.cards, n=3, cutoff=0.5)
        return [self.cards[key].name for key in keys]

    def _by_name(self, wanted: str) -> ModelCard | None:
        """By whole name, else by its last part where only one model has it."""
        if not wanted:
            return None
        card = self.cards.get(wanted)
        if card is not None or not self.complete:
            return card
        short = [c for key, c in self.cards.items() if key.rpartition("/")[2] == wanted]
        return short[0] if len(short) == 1 else None

    def _default(self, last: str | None) -> str | None:
        """The first completion model by name, unless the last one is still there."""
        usable = [
            card.name
            for card in self.cards.values()
            if not card.unavailable and "completion" in card.capabilities and card.name != GUIDE
        ]
        if last in usable:
            return last
        return usable[0] if usable and self.complete else None


def settings_of(name: str, models: Models) -> Model | None:
    """What models.yaml says of one model, however it writes the name."""
    wanted = canonical(name)
    for written, settings in models.models.items():
        if canonical(written) == wanted:
            return settings
    return None


def _within(card: ModelCard, own: Model | None, models: Models) -> ModelCard:
    """The card with the context that policy allows."""
    wanted = (own.context if own is not None else None) or models.defaults.context
    if wanted == "auto":
        return card
    return replace(card, context=min(card.context, wanted), trained_context=card.context)
