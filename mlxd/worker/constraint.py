"""One sequence follows its grammar: which tokens may come, told before each is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxd.worker.masks import ANY, Mask, masked
from mlxd.worker.sampling import Guard


class GrammarFailed(Exception):
    """The grammar cannot be followed any further."""


class Opening:
    """Tokens that an answer may begin with, in place of what its grammar says."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._matched = 0

    @property
    def next(self) -> int | None:
        """The token that goes on with it; None: it is complete, or something else was said."""
        return self._tokens[self._matched] if self._matched < len(self._tokens) else None

    @property
    def begun(self) -> bool:
        """It has begun, and nothing else may follow."""
        return 0 < self._matched < len(self._tokens)

    @property
    def complete(self) -> bool:
        return bool(self._tokens) and self._matched == len(self._tokens)

    def take(self, token: int) -> bool:
        """Whether the token belongs to it; from the first that does not, none does."""
        if token != self.next:
            self._tokens = []
            return False
        self._matched += 1
        return True


class Closing:
    """The mark that ends thinking, looked for in what has been said."""

    def __init__(self, tokens: Sequence[int], read: Callable[[list[int]], str] | None) -> None:
        """`read`: says tokens as text, where the mark is text like any other. Which tokens it has
        then depends on what stands around it.
        """
        self._tokens = list(tokens)
        self._read = read
        self._mark = read(self._tokens) if read else ""
        self._before_last = read(self._tokens[:-1]) if read else ""
        self._seen: list[int] = []

    @property
    def next(self) -> int | None:
        """Its last token, where nothing but that is missing; with more than the mark in it, the
        beginning of the answer would be taken for thinking.
        """
        if not self._before_last or not self._text.endswith(self._before_last):
            return None
        return self._tokens[-1]

    @property
    def _text(self) -> str:
        return self._read(self._seen) if self._read else ""

    def take(self, token: int) -> bool:
        """Whether it is complete with this token."""
        most = len(self._mark) or len(self._tokens)
        self._seen = [*self._seen, token][-most:]
        if self._read is None:
            return self._seen == self._tokens
        return self._mark in self._text


class Thinking:
    """Whether the sequence is in a think block, where no grammar holds, or may still open one."""

    def __init__(self, starts: Sequence[int], closing: Closing, *, inside: bool) -> None:
        """`starts`: the tokens that open it; empty: it may not be opened."""
        self.opening = Opening([] if inside else starts)
        self.closing = closing
        self.inside = inside

    def take(self, token: int) -> bool:
        """Whether the token belongs to the thinking."""
        if self.inside:
            self.inside = not self.closing.take(token)
            return True
        if self.opening.complete or not self.opening.take(token):
            return False
        self.inside = self.opening.complete
        return True


class Constrained:
    """Never raises: what goes wrong is the guard's, and the sequence goes on without a grammar
    until the loop ends it.
    """

    def __init__(
        self,
        matcher: Any,
        guard: Guard,
        thinking: Thinking,
        call: Opening,
        *,
        eos: Sequence[int],
        least: float,
    ) -> None:
        """`call` opens a tool call, behind which no grammar holds. `least`: tokens before which it
        does not end, unless its grammar is at its end.
        """
        self._matcher = matcher
        self._guard = guard
        self._thinking = thinking
        self._call = call
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
            self._take(token)
        except Exception as error:  # noqa: BLE001 - it must not break the step of the others
            self._guard.error = error

    def _take(self, token: int) -> None:
        if self._thinking.take(token) or self._call.complete or self._call.take(token):
            return
        if not self._matcher.consume_token(token):
            self._fail()

    def fill(self, row: Mask) -> None:
        if self._guard.error is not None or self._call.complete:
            return
        try:
            self._fill(row)
        except Exception as error:  # noqa: BLE001 - it must not break the step of the others
            self._guard.error = error
            row[:] = ANY

    def _fill(self, row: Mask) -> None:
        if self._thinking.inside:
            if (closing := self._thinking.closing.next) is not None:
                row[:] = 0
                _allow(row, closing)
            _forbid(row, self._eos)  # an answer that ended there would not be what its grammar says
            return
        openings = [self._thinking.opening, self._call]
        if any(opening.begun for opening in openings):
            row[:] = 0
            openings = [opening for opening in openings if opening.begun]
        else:
            self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            if self._matcher.is_error():
                self._fail()
        for opening in openings:
            if opening.next is not None:
                _allow(row, opening.next)
        if self._taken < self._least:
            _forbid(row, self._eos)

    def _fail(self) -> None:
        """Of the tokens that it allowed one was drawn: what else fails are its limits."""
        raise GrammarFailed("the grammar is too complex, and cannot be followed any further")


def _allow(row: Mask, token: int) -> None:
    row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)


def _forbid(row: Mask, tokens: Sequence[int]) -> None:
    """Unless nothing else is allowed."""
    left = row.copy()
    for token in tokens:
        left.view(np.uint32)[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
    if left.any():
        row[:] = left
