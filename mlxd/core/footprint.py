"""How many bytes a model and its sequences take: the same arithmetic in daemon and worker.

Measured against real engine processes by benchmarks/memory_model.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    row: int = 0
    """Of one row."""
    token: int = 0
    """Of one token of the chunk in one row: activations."""
    key: int = 0
    """Of one token in a row's cache: what is copied while a cache grows or rows join."""
    pair: int = 0
    """Of one token of the chunk against one in the cache, in one row: scores and their mask."""
    window_key: int = 0
    """As `key`, in layers that keep a window."""
    window_pair: int = 0
    block: int = 0
    """Tokens that are worked through together, each against each, at the cost of `row`."""

    def bytes_of(self, rows: int, chunk: int, length: int, window: int = 0) -> int:
        seen = min(length, window - 1 + chunk) if window else 0
        row = self.row * _share(chunk, self.block) if self.block else self.row
        keys = length * self.key + seen * self.window_key
        pairs = length * self.pair + seen * self.window_pair
        return rows * (int(row) + keys + chunk * (self.token + pairs))


def _share(chunk: int, block: int) -> float:
    """Of what two full blocks take: the largest of a chunk is one half, the last the other."""
    last = (chunk - 1) % block + 1
    return float(min(chunk, block) ** 2 + last**2) / (2 * block**2)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one loaded model takes."""

    weights_bytes: int
    groups: tuple[LayerGroup, ...]
    work_bytes: int = 0
    """Of one token in one layer while it is computed; counts where there are no moments."""
    score_bytes: int = 0
    """Of one query against one key in all heads of a layer; 0 where attention is fused."""
    first: tuple[Moment, ...] = ()
    """Of the first chunk of prompts, which makes the caches."""
    prefill: tuple[Moment, ...] = ()
    """Of another chunk."""
    start: tuple[Moment, ...] = ()
    """Of a prompt's first token, for which rows are copied out of their batch."""
    decode: tuple[Moment, ...] = ()
    """Of one token in each row, when the caches grow."""
    join: tuple[Moment, ...] = ()
    """The same when rows have joined, and all are copied."""
    draft: tuple[LayerGroup, ...] = ()
    """Of the model that drafts: it follows one sequence at a time."""

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        """Of a batch of sequences with these lengths: padded to the longest, not paged."""
        longest = max(lengths, default=0)
        followed = sum(group.bytes_of(1, longest) for group in self.draft) if lengths else 0
        return followed + self._caches(len(lengths), longest)

    def peak_bytes(
        self,
        running: Sequence[int],
        joining: Sequence[int] = (),
        chunk: int = 0,
        *,
        prompts: Sequence[int] | None = None,
    ) -> int:
        """The most that is held at one time, weights included.

        `running` sequences decode up to these lengths; `joining` ones are prefilled, `chunk`
        tokens of each in a step (0: as the engine would), merged with the others, and decode up to
        theirs. `prompts`: how much of each joining one is its prompt; all of it, unless said.
        """
        batch = [*running, *joining]
        peak = self.cache_bytes(batch) + self._highest(
            self.decode, len(batch), 1, max(batch, default=0)
        )
        if joining:
            prompts = sorted(joining if prompts is None else prompts)
            peak = max(peak, *self._entering(running, prompts, chunk))
        if running and joining:
            merged = self._highest(self.join, len(batch), 1, max(batch))
            peak = max(peak, self.cache_bytes(batch) + merged)
        return self.weights_bytes + peak

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

    def _entering(
        self, running: Sequence[int], prompts: Sequence[int], chunk: int
    ) -> Iterator[int]:
        """What is held while prompts become running sequences, shortest first."""
        apart = self.cache_bytes(running)
        for first in range(0, len(prompts), PREFILL_ROWS):
            together = prompts[first : first + PREFILL_ROWS]
            for rows, size, length in _chunks(together, chunk, decoding=bool(running or first)):
                moments = self.first if self.first and length == size else self.prefill
                computed = self._highest(moments, rows, size, length)
                yield apart + self._caches(len(together), length, size) + computed
            rows, length = len(together), together[-1]
            split = self._highest(self.start, rows, 1, length)
            yield apart + self._caches(rows, length) + split

    def _caches(self, rows: int, length: int, chunk: int = 0) -> int:
        return sum(group.bytes_of(rows, length, chunk) for group in self.groups)

    def _highest(self, moments: Sequence[Moment], rows: int, chunk: int, length: int) -> int:
        if not moments:
            return rows * chunk * (self.work_bytes + length * self.score_bytes)
        window = max((group.window for group in self.groups), default=0)
        if window and all(group.window for group in self.groups if group.token_bytes):
            length = min(length, window - 1 + chunk)
        return max(moment.bytes_of(rows, chunk, length, window) for moment in moments)


def _chunks(
    prompts: Sequence[int], chunk: int, *, decoding: bool
) -> Iterator[tuple[int, int, int]]:
    """(rows, tokens of each, length then) of the steps that may hold most, of prompts in order.

    As many steps follow each other with the same rows as the shortest takes; the longest caches are
    those of the last two. A prompt that is through decodes, and leaves the others smaller chunks.
    """
    done = 0
    for n, prompt in enumerate(prompts):
        if prompt <= done:
            continue
        rows = len(prompts) - n
        size = chunk or chunk_tokens(rows, decoding=decoding or n > 0)
        full, rest = divmod(prompt - done, size)
        longest = prompts[-1] - done
        if full > 1 and not done:
            yield rows, size, size
        if full:
            yield rows, size, done + full * size
        if rest:
            last = min(size, longest - full * size)
            yield rows, last, done + full * size + last
            full += 1
        done += full * size


def chunk_tokens(rows: int, *, decoding: bool) -> int:
    """Tokens of each of `rows` prompts that one step prefills."""
    return (PREFILL_BESIDE_DECODE if decoding else PREFILL_ALONE) // max(1, rows)
