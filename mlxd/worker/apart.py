"""What a model takes whose sequences share no steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from mlxd.core.footprint import PREFILL_BESIDE_DECODE, Footprint


class Apart(Footprint):
    """Each sequence has caches of its own, as long as it is, and computes while none other does."""

    @classmethod
    def of(cls, footprint: Footprint) -> Apart:
        """The same model."""
        return cls(**{each.name: getattr(footprint, each.name) for each in fields(footprint)})

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        return sum(self._own(length) for length in lengths)

    def peak_bytes(
        self,
        running: Sequence[int],
        joining: Sequence[int] = (),
        chunk: int = 0,
        *,
        prompts: Sequence[int] | None = None,
    ) -> int:
        """As if each were the one that computes, beside what the others hold."""
        held = self.cache_bytes([*running, *joining])
        one = super().peak_bytes
        peaks = [one((length,)) - self._own(length) for length in running]
        for length, prompt in zip(joining, prompts or joining, strict=True):
            size = chunk or PREFILL_BESIDE_DECODE
            peaks.append(one((), (length,), size, prompts=(prompt,)) - self._own(length))
        return held + max(peaks, default=self.weights_bytes)

    def _own(self, length: int) -> int:
        return super().cache_bytes((length,))
