"""How many bytes a model and its sequences take: the same arithmetic in daemon and worker.

Measured against real engine processes by benchmarks/memory_model.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEP_TOKENS = 256
"""Caches grow by so many tokens at a time (mlx-lm's KVCache.step)."""
PREFILL_ROWS = 8
"""Prompts that are prefilled together at most."""
PREFILL_ALONE = 2048
"""Tokens of all prompts together in one step of prefill, while nothing decodes."""
PREFILL_BESIDE_DECODE = 512
"""And while something does."""
_LONGEST = 1 << 24


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

    def bytes_of(self, rows: int, length: int, chunk: int = 0) -> int:
        """Of a batch of `rows` sequences, the longest with `length` tokens.

        While `chunk` tokens are prefilled, a window keeps these beside what each of them sees.
        """
        padded = -(-length // STEP_TOKENS) * STEP_TOKENS
        kept = min(padded, self.window + max(0, chunk - 1)) if self.window else padded
        return self.layers * rows * (self.constant_bytes + kept * self.token_bytes)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a step holds beside the caches at one of the times when it holds most, in bytes.

    A step takes `rows` sequences through the model, `chunk` tokens of each, the longest then with
    `length` tokens.
    """

    fixed: int = 0
    row: int = 0
    """Of one row."""
    token: int = 0
    """Of one token of the chunk in one row: activations."""
    key: int = 0
    """Of one token in a row's cache: what is copied while a cache grows or rows join."""
    pair: int = 0
    """Of one token of the chunk against one in the cache, in one row: scores."""
    mask: int = 0
    """The same in all rows together."""
    window_key: int = 0
    """As `key`, in layers that keep a window."""
    window_pair: int = 0
    window_mask: int = 0

    def bytes_of(self, rows: int, chunk: int, length: int, window: int = 0) -> int:
        seen = min(length, window - 1 + chunk) if window else 0
        return (
            self.fixed
            + rows * (self.row + chunk * self.token)
            + rows * (length * self.key + seen * self.window_key)
            + rows * chunk * (length * self.pair + seen * self.window_pair)
            + chunk * (length * self.mask + seen * self.window_mask)
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one loaded model takes."""

    weights_bytes: int
    groups: tuple[LayerGroup, ...]
    work_bytes: int = 0
    """Of one token in one layer while it is computed; counts where there are no moments."""
    score_bytes: int = 0
    """Of one query against one key in all heads of a layer; 0 where attention is fused."""
    prefill: tuple[Moment, ...] = ()
    decode: tuple[Moment, ...] = ()
    """One token in each row, the first step after a join, which copies the batch."""

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        """Of a batch of sequences with these lengths: padded to the longest, not paged."""
        return self._caches(len(lengths), max(lengths, default=0))

    def peak_bytes(
        self, running: Sequence[int], joining: Sequence[int] = (), chunk: int = 0
    ) -> int:
        """The most that is held at one time, weights included.

        `running` sequences decode up to these lengths; `joining` ones are prefilled up to theirs,
        `chunk` tokens of each in a step (0: as the engine would), and then merged with the others.
        """
        batch = [*running, *joining]
        together = self._caches(len(batch), max(batch, default=0)) + self._decoding(batch)
        if not joining:
            return self.weights_bytes + together
        rows = min(len(joining), PREFILL_ROWS)
        length = max(joining)
        chunk = min(chunk or chunk_tokens(rows, decoding=bool(running)), length)
        apart = self.cache_bytes(running) + self._caches(len(joining), length, chunk)
        return self.weights_bytes + max(together, apart + self._prefilling(rows, chunk, length))

    def longest(self, budget: int, running: Sequence[int] = (), chunk: int = 0) -> int:
        """Tokens of the longest sequence that still fits beside `running`; 0: none does."""
        low, high = 0, _LONGEST
        while low < high:
            middle = (low + high + 1) // 2
            if self.peak_bytes(running, [middle], chunk) <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def _caches(self, rows: int, length: int, chunk: int = 0) -> int:
        return sum(group.bytes_of(rows, length, chunk) for group in self.groups)

    def _prefilling(self, rows: int, chunk: int, length: int) -> int:
        if not self.prefill:
            return rows * chunk * (self.work_bytes + length * self.score_bytes)
        window = self._window
        return max(moment.bytes_of(rows, chunk, length, window) for moment in self.prefill)

    def _decoding(self, batch: Sequence[int]) -> int:
        rows, length = len(batch), max(batch, default=0)
        if not self.decode:
            return rows * (self.work_bytes + length * self.score_bytes)
        window = self._window
        return max(moment.bytes_of(rows, 1, length, window) for moment in self.decode)

    @property
    def _window(self) -> int:
        return max((group.window for group in self.groups), default=0)


def chunk_tokens(rows: int, *, decoding: bool) -> int:
    """Tokens of each of `rows` prompts that one step prefills."""
    return (PREFILL_BESIDE_DECODE if decoding else PREFILL_ALONE) // max(1, rows)
