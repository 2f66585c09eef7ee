"""How each model was loaded last, for when an edit asks for what cannot be loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlxd.core.models import ModelCard, ModelSpec, canonical

_WAY = (
    "adapter", "template_file", "trust_remote_code", "kv_bits", "digest", "weights_bytes",
    "chat_template", "capabilities",
)  # fmt: skip
"""Of a card: how it is loaded, and what follows from that; who drafts for it does not count."""
_FAULTS = ("adapter", "chat_template")


@dataclass(frozen=True, slots=True)
class _Refused:
    way: ModelSpec
    digest: str
    why: str


class Predecessors:
    """A model whose edited settings cannot be loaded stays as it was served, until other settings
    or other files can. Code of its own that policy trusts no more does not come back by this.
    """

    def __init__(self) -> None:
        self.changes = 0
        """Counts them: cards that were worked out before one may not be right any more."""
        self._served: dict[str, ModelCard] = {}
        """By the name of a model, what its last load that succeeded was."""
        self._refused: dict[str, _Refused] = {}

    def served(self, card: ModelCard) -> None:
        """It was loaded so. What a copy's card says beside that is the copy's own."""
        if card.held:
            return
        name = canonical(card.original)
        if self._refused.pop(name, None) is not None:
            self.changes += 1
        if not card.copy_of and card.preset is None and self._served.get(name) != card:
            self._served[name] = card
            self.changes += 1

    def refuse(self, card: ModelCard, why: str) -> ModelCard | None:
        """It cannot be loaded so. What stays in its place; None: there is nothing."""
        name = canonical(card.original)
        before = self._before(card)
        if before is None or _way(before) == _way(card):
            return None
        self._refused[name] = _Refused(_way(card), card.digest, why)
        self.changes += 1
        return before

    def settled(self, card: ModelCard) -> ModelCard:
        """The card as it is served."""
        before = self._before(card)
        why = self._against(card)
        if before is None or not why:
            return card
        way = {field: getattr(before, field) for field in _WAY}
        return replace(card, unavailable="", fault="", held=why, **way)

    def _before(self, card: ModelCard) -> ModelCard | None:
        before = self._served.get(canonical(card.original))
        if before is None or before.path != card.path:
            return None
        untrusted = before.trust_remote_code and not card.trust_remote_code
        return None if untrusted else before

    def _against(self, card: ModelCard) -> str:
        """Why it is known that it cannot be loaded by its settings; empty: it is not."""
        if card.unavailable:
            return card.unavailable if card.fault in _FAULTS else ""
        refused = self._refused.get(canonical(card.original))
        if refused is None or (refused.way, refused.digest) != (_way(card), card.digest):
            return ""
        return refused.why


def _way(card: ModelCard) -> ModelSpec:
    return replace(card.spec, draft="", draft_tokens=0)
