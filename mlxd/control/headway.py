"""How far one call has come: what a later request of its client goes on from when it was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from mlxd.control.fingerprint import fingerprint_of
from mlxd.control.replay import seeded
from mlxd.control.transcript import Origin, Transcript
from mlxd.core.errors import ResumeExpired
from mlxd.core.events import Burst, bytes_of
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.core.request import Sampling

_FREE = 8
"""How often going on is nothing new; each time after that counts towards rates, like a request."""


class Headway:
    """One transcript for each generation of the call, and what they were begun with."""

    def __init__(self) -> None:
        self.transcripts: tuple[Transcript, ...] = ()
        """Empty until it has begun."""
        self.drawn = False
        """The daemon has drawn a seed for it: the same request anew would be told something else.
        """
        self._samplings: tuple[Sampling, ...] = ()
        self._model: tuple[ModelSpec, str] | None = None
        self._name = ""
        """Of that model."""
        self._origin = Origin()
        self._times = 0
        """That it was begun."""

    def begin(
        self, card: ModelCard, samplings: Sequence[Sampling], draw: Callable[[], int]
    ) -> Sequence[Sampling]:
        """For the first time, or again: with which samplings, whose seeds `draw` may have drawn.

        Raises ResumeExpired where the model is not the same any more; who drafts for it does not
        count.
        """
        model = (replace(card.spec, draft="", draft_tokens=0), fingerprint_of(card))
        if not self.transcripts:
            self._model, self._name = model, card.original
            self._samplings = tuple(seeded(sampling, draw) for sampling in samplings)
            self.drawn = self._samplings != tuple(samplings)
            self.transcripts = tuple(Transcript(origin=self._origin) for _ in samplings)
            self._origin.parts = len(samplings)
        elif model != self._model:
            if not self._may_be(model):
                raise ResumeExpired(
                    self._what_changed(card),
                    would_pass="the same request without Last-Event-ID, which begins anew",
                )
            self._model, self._origin.other_files = model, False
        self._origin.came_back = self._times > 0
        self._times += 1
        return self._samplings

    def _may_be(self, model: tuple[ModelSpec, str]) -> bool:
        """Whether the catalogue may have come to know the files that it was begun by: its next
        worker tells.
        """
        before = self._model
        return self._origin.other_files and before is not None and before[0] == model[0]

    def by_other_files(self) -> None:
        """Its model computes by others than those of the card that it was begun with."""
        self._origin.other_files = True

    def _what_changed(self, card: ModelCard) -> str:
        if card.original == self._name:
            return f"model '{card.name}' has changed since this answer was begun"
        return (
            f"this answer was begun by model '{self._name}', and what its client calls so leads"
            f" to '{card.original}' by now"
        )

    def forget(self) -> None:
        """Nothing came of it: it begins anew, with another engine of its model."""
        self.transcripts = ()

    def give_back(self, number: int, burst: Burst) -> None:
        """A burst of generation `number` that was taken and has reached nobody."""
        self.transcripts[number].give_back(burst)

    @property
    def free(self) -> bool:
        """It goes on, and not for the umpteenth time: that is no request more."""
        return 1 < self._times <= 1 + _FREE

    @property
    def tokens(self) -> int:
        """Of all its answers, so far."""
        return sum(len(one.tokens) for one in self.transcripts)

    @property
    def over(self) -> bool:
        """All has been taken that there is."""
        return bool(self.transcripts) and all(one.finished for one in self.transcripts)

    @property
    def size(self) -> int:
        """In bytes, about."""
        return sum(
            len(one.prompt)
            + 4 * len(one.tokens)
            + sum(map(bytes_of, chain.from_iterable(one.left)))
            for one in self.transcripts
        )
