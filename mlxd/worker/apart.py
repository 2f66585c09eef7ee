"""What a model takes whose sequences share no steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from mlxd.core.footprint import PREFILL_APART, Footprint


class Apart(Footprint):
    """Each sequence has caches of its own, as long as it is, and computes while none other does."""

    @classmethod
    def of(cls, footprint: Footprint) -> Apart:
        """The same model."""
        return cls(**{each.name: getattr(footprint, each.name) for each in fields(footprint)})

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        return sum(self._caches(1, length) for length in lengths)

    def held_bytes(self, lengths: Sequence[int], *, room: int | None = None) -> int:
        return self.cache_bytes(lengths)

    def grouped_bytes(
        self, lengths: Sequence[int], *, joins: bool = True, room: int | None = None
    ) -> int:
        """One of them computes, beside what the others hold."""
        computed = (self._highest(self.decode, 1, 1, length) for length in lengths)
        return self.cache_bytes(lengths) + max(computed, default=0)

    def reading_bytes(self, joining: Sequence[int], prompts: Sequence[int], chunk: int = 0) -> int:
        return super().reading_bytes(joining, prompts, chunk or PREFILL_APART)

    def alone_bytes(self, prompts: Sequence[int], chunk: int = 0) -> int:
        """All may be in the middle when one of them is read."""
        size = chunk or PREFILL_APART
        beyond = (super(Apart, self).alone_bytes((p,), size) - self._caches(1, p) for p in prompts)
        return self.cache_bytes(prompts) + max(beyond, default=0)
