"""What each name means: from what a user types to a `ModelCard`, by one scan. Waits for nothing."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from mlxd.control.model_settings import (
    settings_for,
    settings_of,
    settled,
    waits_for_files,
    with_draft,
    with_preset,
)
from mlxd.control.own_names import OwnName
from mlxd.control.scan import GUIDE, Scan, Scope
from mlxd.core.models import ModelCard, canonical, without_library
from mlxd.core.short_names import family_key, short_key, short_name
from mlxd.core.wildcard import literal_prefix, matches
from mlxd.policy.schema import Models

DEFAULT = "default"
_LONGEST_NAME = 350
"""Of a name for which similar ones are looked for."""
_COMPARED = 24
"""Names that are compared letter by letter with one that is not known: that takes long, and there
may be hundreds.
"""
Damage = Callable[[ModelCard], str]
"""Why a model's bytes are known to be wrong; empty where they are not known to be."""
Told = Callable[[ModelCard], bool]
"""Whether whoever asks is told of a model."""
Settled = Callable[[ModelCard], ModelCard]
"""The card of a model as it is served, where it cannot be as policy wants it."""


class Names:
    """The names under one set of policies, as far as one scan can tell.

    After a scan for other folders it has only the cards that are right all the same (`complete` is
    False), and does not answer what a missing card could change.

    A name is, in this order: an alias, a chain, a model's whole name, a copy's, the last part of
    one (`ORGANISATION/NAME`), an alias with `*` (of several the one with the longest beginning), a
    short name, a short name without its size. The last part and short names count only where they
    lead to one model. Where it is none of these, it is the same without Ollama's `library/`.
    """

    def __init__(
        self,
        scan: Scan,
        models: Models,
        default: str | None,
        copies: Mapping[str, OwnName],
        damage: Damage,
        *,
        served: Settled,
    ) -> None:
        """`default` is the last one chosen; it is kept until it disappears. `copies`: names that
        clients gave to models.
        """
        scope = Scope.of(models)
        self.models = models
        self.complete = scan.scope == scope
        self._chains = {canonical(name): chain for name, chain in models.chains.items()}
        self._aliases, patterns = aliases_of(models)
        self._patterns = [(literal_prefix(pattern), pattern, to) for pattern, to in patterns]
        cards = map(served, _cards(scan, scope, models, damage))
        self.cards = {canonical(card.name): card for card in cards}
        self.default: str | None = None
        self._short = {key: short_name(key) for key in self.cards}
        self._index()
        if copies:
            self._copy(copies)
        self._shorten()
        if copies:
            self._index()
        self.default = self._default(default)
        self._draft()

    def find(self, name: str) -> ModelCard | None:
        wanted = canonical(name)
        found, plain = self._find(wanted), without_library(wanted)
        if found is None and self.complete and plain != wanted:
            return self._find(plain)
        return found

    def _find(self, wanted: str) -> ModelCard | None:
        wanted = self._aliases.get(wanted, wanted)
        if wanted not in self._chains:
            return self._by_name(wanted) or self._by_pattern(wanted) or self._by_short(wanted)
        for link in self._chains[wanted]:
            card = self._meant(link)
            if card is not None and not card.unavailable:
                return card
            if not self.complete:
                return None
        if wanted == DEFAULT and not self._chains[wanted]:
            if self.default is None and not self.complete:
                return None
            wanted = canonical(self.default or GUIDE)
        return self._by_name(wanted)

    def near(self, name: str, told_of: Told) -> list[str]:
        """Names that look like `name`."""
        if len(name) > _LONGEST_NAME:
            return []
        cards = {key: card for key, card in self.cards.items() if told_of(card)}
        known = {key: card.name for key, card in cards.items()}
        known |= {card.short_name: card.short_name for card in cards.values()}
        wanted = canonical(name)
        own = _pairs(wanted)

        def alike(key: str) -> float:
            return len(own & _pairs(key)) / (len(wanted) + len(key) + 1)

        likely = heapq.nlargest(_COMPARED, known, key=alike)
        close = difflib.get_close_matches(wanted, likely, n=3, cutoff=0.5)
        return [known[key] for key in close if key]

    def candidates(self, name: str, told_of: Told) -> list[str]:
        """The models that `name` may mean, where these are several and none is preferred."""
        wanted = canonical(name)
        wanted = self._aliases.get(wanted, wanted)
        for found in (self._lasts.get(wanted), *self._short_of(wanted)):
            if found:
                cards = _usable(self._of(found))
                return sorted({card.name for card in cards if told_of(card)})
        return []

    def _meant(self, name: str) -> ModelCard | None:
        """What a name in models.yaml means: aliases count there too, patterns do not."""
        wanted = canonical(name)
        wanted = self._aliases.get(wanted, wanted)
        return self._by_name(wanted) or self._by_short(wanted)

    def _by_name(self, wanted: str) -> ModelCard | None:
        """By whole name, else by its last part where only one model has it."""
        card = self.cards.get(wanted) if wanted else None
        if card is not None or not self.complete:
            return card
        return _only(self._of(self._lasts.get(wanted, ())))

    def _by_pattern(self, wanted: str) -> ModelCard | None:
        if not wanted or not self.complete:
            return None
        for begins, pattern, model in self._patterns:
            if wanted.startswith(begins) and matches(pattern, wanted):
                return self._by_name(model) or self._by_short(model)
        return None

    def _by_short(self, wanted: str) -> ModelCard | None:
        if not self.complete:
            return None
        found = (_only(self._of(keys)) for keys in self._short_of(wanted))
        return next((card for card in found if card is not None), None)

    def _short_of(self, wanted: str) -> list[list[str]]:
        """Those of this short name; without a size, those of the family where there are none."""
        if not wanted or len(wanted) > _LONGEST_NAME:
            return []
        exact = self._shorts.get(short_key(wanted), [])
        if exact or ":" in wanted:
            return [exact]
        return [self._families.get(short_key(wanted), [])]

    def _index(self) -> None:
        """By keys: cards are replaced by others of theirs, and need no other index."""
        self._lasts: dict[str, list[str]] = {}
        self._shorts: dict[str, list[str]] = {}
        self._families: dict[str, list[str]] = {}
        for key in self.cards:
            short = self._short[key]
            self._lasts.setdefault(key.rpartition("/")[2], []).append(key)
            self._shorts.setdefault(short_key(short), []).append(key)
            self._families.setdefault(family_key(short), []).append(key)

    def _of(self, keys: Iterable[str]) -> list[ModelCard]:
        return [self.cards[key] for key in keys if key in self.cards]

    def _copy(self, copies: Mapping[str, OwnName]) -> None:
        """Copies are models of their own names, in the place of a list where these belong. What is
        said of a created model by its own name is put on that.
        """
        made: list[ModelCard] = []
        for name, own in copies.items():
            card = self.cards.get(name)
            if card is not None:
                if own.preset is not None and canonical(own.model) == name:
                    self.cards[name] = with_preset(card, own.preset)
            elif (card := self._meant(own.model)) is not None:
                copy = replace(card, name=name, aliases=(), source="copy", copy_of=card.name)
                made.append(copy if own.preset is None else with_preset(copy, own.preset))
        *found, guide = self.cards.values()
        cards = sorted([*found, *made], key=lambda card: card.name.lower())
        self.cards = {canonical(card.name): card for card in (*cards, guide)}
        self._short = {key: self._short.get(key) or short_name(key) for key in self.cards}

    def _shorten(self) -> None:
        """Tell each card the short name that leads to it."""
        for key, card in self.cards.items():
            short = self._short[key]
            found = self.find(short) if short != key else None
            if found is not None and found.name == card.name:
                self.cards[key] = replace(card, short_name=short)

    def _draft(self) -> None:
        """Tell each card which model drafts for it. While that cannot be known, neither is it."""
        drafted = dict(self.cards)
        for key, card in self.cards.items():
            own = settings_for(card, self.models)
            if own is None or own.draft is None or card.unavailable:
                continue
            found = self._meant(own.draft)
            if found is None and not self.complete:
                del drafted[key]
            else:
                drafted[key] = with_draft(card, own.draft, found)
        self.cards = drafted

    def _default(self, last: str | None) -> str | None:
        """The first completion model by name, unless the last one is still there."""
        usable = [
            card.name
            for card in self.cards.values()
            if not card.unavailable
            and "completion" in card.capabilities
            and card.source not in ("copy", "guide")
        ]
        if last in usable:
            return last
        return usable[0] if usable and self.complete else None


def _cards(scan: Scan, scope: Scope, models: Models, damage: Damage) -> Iterable[ModelCard]:
    """Those that are certain, as policy wants them."""
    for find in scan.certain(scope):
        own = settings_of(find.place.name, models)
        if waits_for_files(own, scan.found):
            continue
        card = settled(find.card, own, models, scan.found)
        if models.defaults.verify == "sha256" and not card.unavailable:
            card = replace(card, unavailable=damage(card))
        yield card


def aliases_of(models: Models) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Alias to model, and the same of those with `*`: the longest beginning first, then the longest
    text; the order in a file says nothing.
    """
    whole: dict[str, str] = {}
    patterns: list[tuple[str, str]] = []
    for model, settings in models.models.items():
        for alias in map(canonical, settings.aliases):
            if "*" in alias:
                patterns.append((alias, canonical(model)))
            else:
                whole[alias] = canonical(model)
    patterns.sort(key=lambda entry: (-len(literal_prefix(entry[0])), -len(entry[0]), *entry))
    return whole, patterns


def _pairs(name: str) -> set[str]:
    """Every two letters that stand beside each other."""
    return {name[at : at + 2] for at in range(len(name) - 1)}


def _only(cards: Iterable[ModelCard]) -> ModelCard | None:
    """The one that a name leads to: names of one folder are one model."""
    usable = _usable(cards)
    return usable[0] if len({card.path for card in usable}) == 1 else None


def _usable(cards: Iterable[ModelCard]) -> list[ModelCard]:
    """The available ones; all, if none is."""
    found = list(cards)
    return [card for card in found if not card.unavailable] or found
