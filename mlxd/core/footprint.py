"""How many bytes a model and its sequences take: the same arithmetic in daemon and worker.

Measured against real engine processes by benchmarks/memory_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Literal

from mlxd.core.grouping import divided, least_bytes

Sharing = Literal["none", "like", "any"]
"""Which sequences share a model's steps. `none`: each has its own. `like`: answers, and prompts
with as many tokens left to be read. `any`: all prompts, the shorter ones padded.
"""
STEP_TOKENS = 256
"""Caches grow by so many tokens at a time (mlx-lm's KVCache.step)."""
PREFILL_ROWS = 8
"""Prompts that are prefilled together at most."""
PREFILL_ALONE = 2048
"""Tokens of all prompts together in one step of prefill, while nothing decodes."""
PREFILL_BESIDE_DECODE = 1024
"""And while something does."""
PREFILL_APART = 512
"""In a step that others do not share: of a sequence that does not batch, or of texts to embed."""
MOST_PADDED = 1.5
"""How many times as much as without padding prompts take at most that are read together."""
SMALL_TOKENS = 256
"""What is no more than this in all is padded however much."""
PASS_BYTES = 2 * 2**20
"""A forward pass takes as long as reading so much takes, be the weights ever so few."""
PADDING_PART = 8
"""Of the weights: a step that reads so much more is hardly slower."""
_LONGEST = 1 << 24
_REMEMBERED = 1024
"""Answers of a kind: sums over the same sequences are asked for at each that comes or goes."""


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
        padded = _whole_steps(length)
        kept = min(padded, self.window + max(0, chunk - 1)) if self.window else padded
        return self.layers * rows * (self.constant_bytes + kept * self.token_bytes)

    def filled_bytes(self, length: int) -> int:
        """Of one sequence, without the room for its next tokens."""
        kept = min(length, self.window) if self.window else length
        return self.layers * (self.constant_bytes + kept * self.token_bytes)


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


def _whole_steps(length: int) -> int:
    return -(-length // STEP_TOKENS) * STEP_TOKENS


def _share(chunk: int, block: int) -> float:
    """Of what two full blocks take: the largest of a chunk is one half, the last the other."""
    last = (chunk - 1) % block + 1
    return float(min(chunk, block) ** 2 + last**2) / (2 * block**2)


def _with_full_blocks(chunk: int, block: int) -> tuple[int, ...]:
    """A chunk may be smaller than foreseen, and then take more: if its last block is full."""
    return (chunk, chunk // block * block) if block and chunk > block else (chunk,)


@dataclass(frozen=True)
class Footprint:
    """What one loaded model takes. What was worked out once is remembered."""

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
    sharing: Sharing | None = None
    """As was tried out when it was loaded; None: it was not."""

    def cache_bytes(self, lengths: Sequence[int]) -> int:
        """Of a batch of sequences with these lengths: padded to the longest, not paged."""
        return self._followed(lengths) + self._caches(len(lengths), max(lengths, default=0))

    def row_bytes(self, length: int) -> int:
        """Of one sequence that decodes beside others, with what is copied when rows join: the same
        until its caches grow.
        """
        return self._row(_whole_steps(length), (self.decode, self.join))

    def read_bytes(self, length: int) -> int:
        """What a step reads of one sequence's caches: no more than it has filled."""
        return sum(group.filled_bytes(length) for group in self.groups)

    @property
    def pass_bytes(self) -> int:
        """What another forward pass for each token costs, as bytes that are read."""
        return self.weights_bytes + PASS_BYTES

    @property
    def padding_bytes(self) -> int:
        """Of padding that the sequences which decode may always have, however short memory is."""
        return self.weights_bytes // PADDING_PART

    def grouped_bytes(
        self, lengths: Sequence[int], *, joins: bool = True, room: int | None = None
    ) -> int:
        """What sequences that decode up to these lengths take at most, weights not included.

        They are in one batch or several (grouping.py). `joins`: whether rows join or leave, for
        which they are copied. `room`: as in `peak_bytes`.
        """
        kinds = (self.decode, self.join) if joins and len(lengths) > 1 else (self.decode,)
        rows = self._together(lengths, lambda length: self._row(length, kinds), room)
        return self._followed(lengths) + rows

    def held_bytes(self, lengths: Sequence[int], *, room: int | None = None) -> int:
        """The same between two steps: caches alone."""
        rows = self._together(lengths, lambda length: self._caches(1, length), room)
        return self._followed(lengths) + rows

    def peak_bytes(
        self,
        running: Sequence[int],
        joining: Sequence[int] = (),
        chunk: int = 0,
        *,
        prompts: Sequence[int] | None = None,
        room: int | None = None,
    ) -> int:
        """The most that is held at one time, weights included.

        `running` sequences decode up to these lengths; `joining` ones are prefilled, `chunk`
        tokens in a step (0: as the engine would), and decode up to theirs with the others.
        `prompts`: how much of each joining one is its prompt; all of it, unless said. `room`: for
        those that decode: what they take who may take so much; else, who take as little as can be.
        """
        prompts = joining if prompts is None else prompts
        everyone = [*running, *joining]
        peak = self.grouped_bytes(everyone, joins=bool(running and joining), room=room)
        if joining and len(everyone) > 1:
            read = self.reading_bytes(joining, prompts, chunk)
            peak = max(peak, self.held_bytes(everyone, room=room) + read)
        if not running:
            peak = max(peak, self.alone_bytes(prompts, chunk))
        return self.weights_bytes + peak

    def reading_bytes(self, joining: Sequence[int], prompts: Sequence[int], chunk: int = 0) -> int:
        """What is held at most while any of the prompts are read beside a decode, beyond
        `held_bytes` of all sequences: the prompts' own are among these, up to `joining`.
        """
        limit = chunk or chunk_tokens(1, decoding=True)
        gaps = sorted(
            self._caches(1, length) - self._caches(1, prompt)
            for length, prompt in zip(joining, prompts, strict=True)
        )
        falling = sorted(prompts, reverse=True)
        own = _sums(self._caches(1, prompt) for prompt in falling)
        beyond = _sums(gaps)
        found = [
            held - (own[first + rows] - own[first]) - beyond[rows]
            for held, first, rows in self._chunks(falling, limit, apart=bool(chunk))
        ]
        return max(found, default=0)

    def alone_bytes(self, prompts: Sequence[int], chunk: int = 0) -> int:
        """What is held at most, weights not included, while prompts are read and nothing decodes:
        one that is long may be in the middle when some short ones are read.
        """
        limit = chunk or chunk_tokens(1, decoding=False)
        falling = sorted(prompts, reverse=True)
        found = []
        for held, first, rows in self._chunks(falling, limit, apart=bool(chunk)):
            others = [] if chunk else falling[:first] or falling[rows:]
            found.append(held + self._caches(1, max(others, default=0)))
        return max(found, default=0)

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

    def _chunks(
        self, prompts: Sequence[int], limit: int, *, apart: bool
    ) -> Iterator[tuple[int, int, int]]:
        """(what is held, by the prompts from which on, how many): of those that share a chunk of
        `limit` tokens; none do where each is read `apart`.

        Of each number of `prompts` (they fall) the longest that may do so count. A chunk may begin
        anywhere, behind what was kept of a prompt.
        """
        sums = _sums(prompts)
        for rows in range(1, 1 + (1 if apart else min(PREFILL_ROWS, len(prompts)))):
            first = next(
                (
                    n
                    for n in range(len(prompts) - rows + 1)
                    if is_little_padding(rows * prompts[n], sums[n + rows] - sums[n])
                ),
                None,
            )
            if first is None:
                return
            yield self._chunk(rows, prompts[first], limit), first, rows

    @cached_property
    def _chunk(self) -> Callable[[int, int, int], int]:
        """What is held while `rows` prompts, the longest of `length` tokens, share a chunk of
        `limit`.
        """
        return lru_cache(_REMEMBERED)(self._chunk_afresh)

    def _chunk_afresh(self, rows: int, length: int, limit: int) -> int:
        size = min(length, max(1, limit // rows))
        computed = max(
            self._highest(self.first or self.prefill, rows, size, size),
            self._highest(self.start, rows, 1, length) if self.start else 0,
            self._highest(self.prefill, rows, size, length) if size < length else 0,
        )
        return self._caches(rows, length, size) + computed

    def _together(self, lengths: Sequence[int], of: Callable[[int], int], room: int | None) -> int:
        steps = [_whole_steps(length) for length in lengths]
        bytes_of = {length: of(length) for length in set(steps)}
        values = sorted((bytes_of[length] for length in steps), reverse=True)
        if room is None:
            return least_bytes(values, self.padding_bytes)
        return divided(values, self.pass_bytes, room).nbytes if values else 0

    def _followed(self, lengths: Sequence[int]) -> int:
        """By the model that drafts: at most the longest."""
        if not self.draft or not lengths:
            return 0
        return sum(group.bytes_of(1, max(lengths)) for group in self.draft)

    def _row(self, length: int, kinds: Sequence[Sequence[Moment]]) -> int:
        computed = max(self._highest(moments, 1, 1, length) for moments in kinds)
        return self._caches(1, length) + computed

    def _caches(self, rows: int, length: int, chunk: int = 0) -> int:
        return rows * self._row_caches(_whole_steps(length), chunk)

    @cached_property
    def _row_caches(self) -> Callable[[int, int], int]:
        """Of a row of so many tokens, while so many are prefilled."""
        return lru_cache(_REMEMBERED)(
            lambda length, chunk: sum(group.bytes_of(1, length, chunk) for group in self.groups)
        )

    def _highest(self, moments: Sequence[Moment], rows: int, chunk: int, length: int) -> int:
        if not moments:
            return rows * chunk * (self.work_bytes + length * self.score_bytes)
        window = max((group.window for group in self.groups), default=0)
        if window and all(group.window for group in self.groups if group.token_bytes):
            length = min(length, window - 1 + chunk)
        return max(
            moment.bytes_of(rows, size, length, window)
            for moment in moments
            for size in _with_full_blocks(chunk, moment.block)
        )


def chunk_tokens(rows: int, *, decoding: bool) -> int:
    """Tokens of each of `rows` prompts that one step prefills."""
    return (PREFILL_BESIDE_DECODE if decoding else PREFILL_ALONE) // max(1, rows)


def is_little_padding(padded: int, needed: int) -> bool:
    """In tokens, with padding and without: whether another step would take longer than that."""
    return padded <= max(MOST_PADDED * needed, SMALL_TOKENS)


def _sums(values: Iterable[int]) -> list[int]:
    """Of the first none, one, two and so on."""
    return list(accumulate(values, initial=0))
