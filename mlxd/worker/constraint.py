"""One sequence follows its grammar: which tokens may come, told before each is drawn."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlxd.worker.masks import ANY, Mask, masked
from mlxd.worker.sampling import Guard


class GrammarFailed(Exception):
    """The grammar cannot be followed any further."""


class Thinking:
    """Whether the sequence is in a think block, where no grammar holds, or may still open one."""

    def __init__(self, starts: list[int], ends: list[int], *, inside: bool) -> None:
        """`starts`: the tokens that open it; empty: it may not be opened."""
        self._starts = starts
        self._ends = ends
        self._matched = 0
        self._seen: list[int] = []
        self.inside = inside

    @classmethod
    def of(cls, tokenizer: TokenizerWrapper, *, inside: bool, may_start: bool) -> Thinking:
        starts = list(tokenizer.think_start_tokens or ()) if may_start and not inside else []
        return cls(starts, list(tokenizer.think_end_tokens or ()), inside=inside)

    @property
    def next_start(self) -> int | None:
        """The token that goes on opening it."""
        return self._starts[self._matched] if self._matched < len(self._starts) else None

    @property
    def opening(self) -> bool:
        """It has begun to open, and nothing else may follow."""
        return 0 < self._matched < len(self._starts)

    def take(self, token: int) -> bool:
        """Whether the token belongs to the thinking; from the first that does not, none does."""
        if self.inside:
            self._seen = [*self._seen, token][-len(self._ends) :]
            self.inside = self._seen != self._ends
            self._starts = []
            return True
        if token == self.next_start:
            self._matched += 1
            self.inside = self._matched == len(self._starts)
            return True
        self._starts = []
        return False


class Constrained:
    """Never raises: what goes wrong is the guard's, and the sequence goes on without a grammar
    until the loop ends it.
    """

    def __init__(
        self, matcher: Any, guard: Guard, thinking: Thinking, eos: list[int], least: float
    ) -> None:
        """`least`: tokens before which it does not end, unless its grammar is at its end."""
        self._matcher = matcher
        self._guard = guard
        self._thinking = thinking
        self._eos = eos
        self._least = least
        self._taken = 0
        self._seen: int | None = None

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """For one sequence by itself: shown its tokens so far, of which it has taken those that
        were there when it was first asked.
        """
        if self._seen is not None and len(tokens) > self._seen:
            for token in tokens[self._seen :].tolist():  # type: ignore[union-attr]
                self.take(token)  # type: ignore[arg-type]
        self._seen = len(tokens)
        return masked(logits, [self])

    def take(self, token: int) -> None:
        if self._guard.error is not None:
            return
        self._taken += 1
        try:
            if not self._thinking.take(token) and not self._matcher.consume_token(token):
                self._fail()
        except Exception as error:  # noqa: BLE001 - it must not break the step of the others
            self._guard.error = error

    def fill(self, row: Mask) -> None:
        if self._guard.error is not None or self._thinking.inside:
            return
        try:
            self._fill(row)
        except Exception as error:  # noqa: BLE001 - it must not break the step of the others
            self._guard.error = error
            row[:] = ANY

    def _fill(self, row: Mask) -> None:
        if self._thinking.opening:
            row[:] = 0
        else:
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            if self._matcher.is_error():
                self._fail()
        if self._thinking.next_start is not None:
            _allow(row, self._thinking.next_start)
        if self._taken < self._least:
            _forbid(row, self._eos)

    def _fail(self) -> None:
        reason = self._matcher.stop_reason()
        raise GrammarFailed(_WORDS.get(reason, "the answer left its grammar"))


_WORDS = {
    "ParserTooComplex": "the grammar takes too long to follow: it is too ambiguous",
    "LexerTooComplex": "the grammar takes too long to follow: its patterns are too complex",
}


def _allow(row: Mask, token: int) -> None:
    row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)


def _forbid(row: Mask, tokens: list[int]) -> None:
    """Unless nothing else is allowed."""
    left = row.copy()
    for token in tokens:
        left.view(np.uint32)[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    if left.any():
        row[:] = left
