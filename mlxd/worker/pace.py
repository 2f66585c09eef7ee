"""How long prefill takes, as an engine's own steps have shown, and how much of it a step may do.

A chunk takes tokens x (a + b x length): `a` is what each token takes by itself, `b` what it takes
to look at a token before it; on a CPU most of a long prompt is that. Lengths and tokens count
padding.

On CUDA attention is planned for each new pair of lengths, which takes 50 to 65 ms where the chunk
itself takes 10 (MLX 0.32 with cuDNN, an H100, 974 M parameters). Small chunks save nothing of that
(`_Fixed`): where it is most of what a chunk may take, the tokens may take as long again.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque

from mlxd.worker.tuning import Tuned

FIRST_TOKENS = 64
"""Of all prompts together in the first chunk, before anything is known."""
FIRST_ON_GPU_TOKENS = 512
"""There even a large model reads as many in a second or so, and a short prompt stays in one piece:
on a GPU the pieces change the last bits of what is computed, and so, now and then, a token."""
PLANNED_TOKENS = 64
"""Where chunks are planned, larger ones are powers of 2, and tell nothing of what a plan takes."""
FEW_TOKENS = 16
"""Fewer may take as long as so many: they tell only when it is less than was thought."""
AIM, LEAST_AIM = 0.75, 0.4
"""Of the stall target, what a chunk is to take: some take longer than what is like them did. How
much longer is seen; on a machine that others slow down now and then, those of a long prompt beside
answers, which are many, are to take less."""
RECENT_CHUNKS, KEPT = 64, 0.8
"""By which that is judged: all but the worst of them would have taken this part of the target."""
GROWTH = 4
"""How many times as long as the longest so far a chunk may be: beyond, nothing is known."""


class Pace:
    """Of one model on one machine, as both are now."""

    def __init__(
        self, tuned: Tuned | None = None, *, gpu: bool = False, plans: bool = False
    ) -> None:
        """`plans`: what was planned for one chunk serves others of the same size and place."""
        self._tuned = tuned or Tuned()
        self._fixed = _Fixed() if plans else None
        self._most = (FIRST_ON_GPU_TOKENS if gpu else FIRST_TOKENS) // GROWTH
        self._costs = _Costs()
        self._excess = _Excess()
        self._load = 1.0
        """How many times as long as `_costs` says a chunk takes at present: what else runs here."""
        self._decode = 0.0
        """Seconds of a recent step that only decoded."""

    def tokens(
        self, rows: int = 1, position: int = 0, *, decoding: bool, midway: bool = False
    ) -> int:
        """Of each of `rows` prompts, for the next chunk. `position`: what the longest has behind
        it; `midway`: others of it follow. Where chunks are planned: a power of 2, if it can be.
        """
        rows, seconds = max(1, rows), self._seconds(decoding=decoding, midway=midway)
        tokens = self._within(seconds, rows, position)
        if self._fixed is None:
            return tokens
        fixed = self._fixed.of(rows * tokens, position + tokens)
        return self._within(max(seconds - fixed, fixed), rows, position) if fixed else tokens

    def _within(self, seconds: float, rows: int, position: int) -> int:
        allowed = self._affordable(rows, position, seconds)
        together = min(allowed * rows, self._most * GROWTH)
        tokens = max(math.ceil(self._tuned.now.min_chunk / rows), int(together / rows))
        if self._fixed is not None and tokens > PLANNED_TOKENS:
            return 1 << (tokens.bit_length() - 1)
        return tokens

    def decoded(self, seconds: float) -> None:
        """A step has decoded, and nothing else, behind another one that did."""
        self._decode = seconds

    def prefilled(
        self,
        tokens: int,
        seconds: float,
        *,
        beside: bool,
        length: int = 0,
        midway: bool = False,
    ) -> None:
        """A chunk of so many tokens was read, of prompts with then at most `length`.

        `beside`: meanwhile a step's tokens may have been computed, too. `midway`: answers waited
        for it, and it ended in the middle of a prompt.
        """
        if beside:
            seconds = max(seconds - self._decode, seconds / 2)
        whole = max(seconds, 1e-9)
        if self._fixed is not None:
            thought = tokens * self._load * self._costs.at(length)
            seconds = self._fixed.beside(tokens, length, seconds, thought)
        each = max(seconds / tokens, 1e-9) if tokens else math.inf
        if tokens < FEW_TOKENS and each >= self._load * self._costs.at(length):
            return
        share = tokens / (tokens + FIRST_TOKENS) * min(1.0, seconds / whole)
        known = self._costs.known
        if midway and self._fixed is None:
            self._judge(tokens, each, length)
        most = whole / tokens / self._load if tokens and self._fixed is not None else math.inf
        self._costs.add(each, length, share, most)
        ratio = each / self._costs.at(length)
        if ratio < self._load:  # fewer tokens than allowed never take less each
            share = max(share, 0.5)
        self._load = self._load * (ratio / self._load) ** share if known else 1.0
        self._most = max(self._most, tokens)

    def _judge(self, tokens: int, each: float, length: int) -> None:
        """Whether a chunk was late that was to take its time: one of a few tokens, up to where a
        turn ends, say, keeps nobody waiting however long each of them takes.
        """
        thought = self._load * self._costs.at(length)
        least = self._seconds(decoding=True, midway=True) / 2
        if tokens * thought >= least:
            self._excess.add(each / thought)

    def _seconds(self, *, decoding: bool, midway: bool) -> float:
        """Of a chunk. Where a decode step is long by itself, prompts are still read."""
        aim = (self._excess.aim if midway and decoding else AIM) * self._tuned.now.stall_seconds
        return max(aim - self._decode, aim / 2) if decoding else aim

    def _affordable(self, rows: int, position: int, seconds: float) -> float:
        """Tokens of each that take so long: w with rows x w x (a + b x (position + w)) seconds."""
        if not self._costs.known:
            return math.inf
        a, b = self._costs.line
        each, seconds = a + b * position, seconds / (self._load * rows)
        if b * seconds < 1e-9 * each * each:
            return seconds / each * (1 + 1e-9)
        return (math.sqrt(each * each + 4 * b * seconds) - each) / (2 * b)


class _Excess:
    """How much longer than it was thought to a chunk may take."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT_CHUNKS)
        self.aim = AIM
        """Of the stall target."""

    def add(self, times: float) -> None:
        """A chunk took so many times as long as it was thought to."""
        self._recent.append(times)
        _, second = heapq.nlargest(2, (1.0, *self._recent))
        self.aim = max(LEAST_AIM, min(AIM, KEPT / second))


class _Fixed:
    """Seconds that a chunk takes whatever its size, if it has to be planned."""

    SHARE = 0.3
    """What one chunk counts for."""
    LEAST = 0.125
    """The part of a chunk's time that is always put down to its tokens."""
    PLANS = 64
    """Pairs of lengths that are remembered, the last ones: MLX keeps a bounded number of plans."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._planned: OrderedDict[tuple[int, int], None] = OrderedDict()

    def of(self, tokens: int, length: int) -> float:
        """For the next chunk of so many tokens, with which its prompt has `length`."""
        return 0.0 if (tokens, length) in self._planned else self._seconds

    def beside(self, tokens: int, length: int, seconds: float, known: float) -> float:
        """Those of a chunk's `seconds` that are its tokens'; `known`: what these were thought to
        take.

        Few tokens take little of it; many may just be slower than was thought.
        """
        if self._was_planned(tokens, length):
            return seconds
        if tokens <= PLANNED_TOKENS:
            rest = seconds - min(known, seconds / 4)
            self._seconds += self.SHARE * (rest - self._seconds)
        self._seconds = min(self._seconds, seconds)
        return max(seconds - self._seconds, self.LEAST * seconds)

    def _was_planned(self, tokens: int, length: int) -> bool:
        pair = (tokens, length)
        was = pair in self._planned
        self._planned[pair] = None
        self._planned.move_to_end(pair)
        if len(self._planned) > self.PLANS:
            self._planned.popitem(last=False)
        return was


class _Costs:
    """Seconds of a token by the length of its prompt: a line through what was seen.

    Kept by lengths that double, so that a hundred short prompts do not make it forget what a long
    one takes.
    """

    SPREAD = 512.0
    """Tokens; lengths that differ less say little about `b`."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float]] = {}
        """Of lengths with so many bits: the length, the seconds."""
        self.line = (0.0, 0.0)
        """Of a token by itself, and for each token before it."""

    @property
    def known(self) -> bool:
        return bool(self._seen)

    def at(self, length: int) -> float:
        a, b = self.line
        return a + b * length

    def add(self, seconds: float, length: int, share: float, most: float = math.inf) -> None:
        """`most`: it is no more than that, whatever was thought."""
        bits = max(length, 128).bit_length()
        if bits in self._seen:
            mean, each = self._seen[bits]
            share /= 2
            seconds = each + share * (seconds - each)
            length = round(mean + share * (length - mean))
        self._seen[bits] = (length, min(seconds, most))
        self.line = self._fitted()

    def _fitted(self) -> tuple[float, float]:
        """Least squares, both at least 0; `b` drawn to 0 where lengths are alike."""
        points = list(self._seen.values())
        length = sum(x for x, _ in points) / len(points)
        each = sum(y for _, y in points) / len(points)
        both = sum((x - length) * (y - each) for x, y in points)
        spread = sum((x - length) ** 2 for x, _ in points)
        b = max(0.0, both / (spread + self.SPREAD**2))
        least = min(y for _, y in points)
        a = max(each - b * length, least / 16)
        return a, b
