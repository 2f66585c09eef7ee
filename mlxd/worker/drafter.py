"""The model that drafts: it reads what the large one has said, and proposes what comes next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from mlxd.worker.engine import Sampler
from mlxd.worker.trimming import room


class Drafter:
    """Follows one sequence at a time, with a cache of its own."""

    def __init__(self, model: Any, width: int) -> None:
        """`width`: token ids from here up are none that both models have."""
        self._model = model
        self.width = width
        self._cache: list[Any] = []
        self._read: list[int] = []
        """What is in the cache, but for the drafts at its end."""
        self._drafts = 0
        """How many drafts are in the cache."""

    @property
    def room(self) -> int:
        """Tokens that it may draft."""
        return room(self._cache)

    def behind(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` it has not read."""
        return len(tokens) - len(self._read)

    def knows(self, tokens: Sequence[int]) -> bool:
        """Whether all of `tokens` that it has not read are in its tables."""
        return max(tokens[len(self._read) :], default=0) < self.width

    def follow(self, tokens: Sequence[int]) -> None:
        """From now on this sequence: what it shares with the last one need not be read again."""
        pairs = zip(self._read, tokens, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._trim(len(self._read) - shared)
        del self._read[shared:]

    def read(self, tokens: Sequence[int], count: int) -> None:
        """The next `count` of `tokens`."""
        chunk = list(tokens[len(self._read) : len(self._read) + count])
        self._logits(mx.array(chunk))
        self._read += chunk
        mx.eval([layer.state for layer in self._cache])
        mx.clear_cache()

    def draft(
        self, tokens: Sequence[int], last: int, depth: int, sampler: Callable[[int], Sampler]
    ) -> mx.array:
        """Proposes `depth` tokens behind `tokens` and `last`; not computed yet. `sampler`: for the
        n-th.
        """
        unread = [*tokens[len(self._read) :], last]
        inputs = mx.array(unread)
        drafts: list[mx.array] = []
        for n in range(depth):
            inputs = sampler(n)(self._logits(inputs)[:, -1, : self.width])
            drafts.append(inputs)
        self._read += unread
        self._drafts = depth - 1
        return mx.concatenate(drafts)

    def settle(self, tokens: Sequence[int]) -> None:
        """The sequence is `tokens` now: some of the drafts were right."""
        known = len(self._read)
        kept = min(known + self._drafts, len(tokens))
        surplus, self._drafts = known + self._drafts - kept, 0
        self._read += tokens[known:kept]
        self._trim(surplus)

    def forget(self) -> None:
        """Whatever it follows."""
        self._cache, self._read, self._drafts = [], [], 0

    def _logits(self, inputs: mx.array) -> mx.array:
        if not self._cache:
            self._cache = make_prompt_cache(self._model)
        logits: mx.array = self._model(inputs[None], cache=self._cache)
        return logits

    def _trim(self, count: int) -> None:
        """What cannot be taken out again is forgotten with all before it."""
        if count and trim_prompt_cache(self._cache, count) != count:
            self.forget()
