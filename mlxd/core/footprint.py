"""How many bytes a model and its sequences take: the same arithmetic in daemon and worker.

Measured against real engine processes by benchmarks/memory_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEP_TOKENS = 256
"""Caches grow by so many tokens at a time (mlx-lm's KVCache.step)."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose caches are alike."""

    layers: int
    token_bytes: int
    """Of the keys and values of one token in one layer."""
    window: int = 0
    """Tokens that a layer keeps at most; 0: all of them."""
    constant_bytes: int = 0
    """Of one sequence in one layer, however long it is: recurrent state."""

    def bytes_of(self, rows: int, length: int) -> int:
        """Of a batch of `rows` sequences, the longest with `length` tokens."""
        kept = min(length, self.window) if self.window else length
        padded = -(-kept // STEP_TOKENS) * STEP_TOKENS
        return self.layers * rows * (self.constant_bytes + padded * self.token_bytes)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one loaded model takes."""

    weights_bytes: int
    groups: tuple[LayerGroup, ...]
    work_bytes: int = 0
    """Of one token in one layer while it is computed: activations, queries, expert inputs."""
    score_bytes: int = 0
    """Of one query against one key in all heads of a layer; 0 where attention is fused."""

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        """Of a batch of sequences with these lengths: padded to the longest, not paged."""
        if not lengths:
            return 0
        return sum(group.bytes_of(len(lengths), max(lengths)) for group in self.groups)

    def peak_bytes(
        self, running: Sequence[int], joining: Sequence[int] = (), chunk: int = 512
    ) -> int:
        """The most that is held at one time, weights included.

        `running` sequences decode up to these lengths; `joining` ones are prefilled up to theirs,
        `chunk` tokens in a step, and then merged with the others, which copies the batch.
        """
        after = self.cache_bytes([*running, *joining])
        copied = self.cache_bytes(running) if joining else 0
        longest = max([*running, *joining], default=0)
        rows = max(1, len(joining))
        queries = rows * min(chunk, max(joining, default=1))
        computed = queries * (self.work_bytes + longest * self.score_bytes)
        return self.weights_bytes + after + max(copied, computed)

    def longest(self, budget: int, running: Sequence[int] = (), chunk: int = 512) -> int:
        """Tokens of the longest sequence that still fits beside `running`; 0: none does."""
        low, high = 0, 1 << 24
        while low < high:
            middle = (low + high + 1) // 2
            if self.peak_bytes(running, [middle], chunk) <= budget:
                low = middle
            else:
                high = middle - 1
        return low
