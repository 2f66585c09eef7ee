"""Speculative decoding of a lone sequence: a small model drafts, the large one checks.

Several tokens go through the large model at once, the next one and those that are drafted behind
it, and give the logits behind each. From these the sequence's own processors, grammar and sampler
draw as they would one by one; as long as that gives what was drafted, the next logits count, too.
So an answer has the tokens that it has without drafts, whatever is drafted and however it samples.
Between two steps a batch is as it is without: others may join it at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import trim_prompt_cache

from mlxd.core.footprint import PREFILL_APART
from mlxd.worker.drafter import Drafter
from mlxd.worker.engine import Drafts
from mlxd.worker.machine import pace
from mlxd.worker.sampling import foreseen
from mlxd.worker.trimming import room
from mlxd.worker.tuning import Tuned
from mlxd.worker.worth import Chance, Worth

if TYPE_CHECKING:
    from mlxd.worker.batch import Batch

CATCH_UP = 32
"""Tokens that the drafter may be behind and draft all the same; more are read first."""
REST = 64
"""Tokens without drafts before one is tried again; twice as many after each vain try."""
LONGEST_REST = 1024


@dataclass(slots=True)
class _Followed:
    """The sequence that the drafter follows."""

    uid: int
    chance: Chance
    rested: int = 0
    """Tokens since the last draft."""
    rest: int = REST
    settled: bool = False
    """The last step had no draft, so that the next without one takes what such a step takes."""
    foreign: bool = False
    """It has said a token that the drafter does not know."""


class Speculation:
    """For one engine. Nothing of a sequence outlives it but what it has taught."""

    def __init__(
        self,
        drafter: Drafter,
        *,
        depth: int | None = None,
        tuned: Tuned | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`depth`: tokens to draft in each step; None: as many as pay."""
        self._drafter = drafter
        self._depth = depth
        self._clock = clock
        self._worth = Worth()
        self._pace = pace(tuned)
        self._followed: _Followed | None = None
        self._told: list[Drafts] = []

    def next(self, batch: Batch) -> list[Any]:
        """In place of `batch.next()`, for a batch of one that has not yet begun with that."""
        followed, tokens = self._follow(batch), batch.tokens[0]
        most = 0 if followed.foreign else self._most(batch)
        depth = self._deep(followed, most) if most > 0 else 0
        if depth <= 0:
            return self._plain(followed, batch)
        if not self._drafter.knows(tokens):
            followed.foreign = True
            return _plainly(batch)
        if self._drafter.behind(tokens) > CATCH_UP:
            self._read(tokens)
            followed.settled = False
            return _plainly(batch)
        pending: int = batch._next_tokens.item()  # type: ignore[assignment]
        if pending >= self._drafter.width:
            return _plainly(batch)
        begun = self._clock()
        responses = self._draft(batch, pending, depth)
        self._learn(followed, depth, len(responses) - 1, self._clock() - begun)
        return responses

    def told(self) -> list[Drafts]:
        """What was drafted since it was last asked."""
        told, self._told = self._told, []
        return told

    def forget(self, uids: Sequence[int]) -> None:
        """They have ended."""
        if self._followed is not None and self._followed.uid in uids:
            self._followed = None
            self._drafter.forget()

    # -- whether to draft

    def _follow(self, batch: Batch) -> _Followed:
        [uid] = batch.uids
        if self._followed is None or self._followed.uid != uid:
            self._followed = _Followed(uid, self._worth.chance())
            self._drafter.follow(batch.tokens[0])
        return self._followed

    def _read(self, tokens: Sequence[int]) -> None:
        """A chunk of what the drafter is behind: the sequence goes on meanwhile."""
        size = min(self._pace.tokens(1, decoding=True), PREFILL_APART)
        size = min(size, self._drafter.behind(tokens))
        begun = self._clock()
        self._drafter.read(tokens, size)
        self._pace.prefilled(size, self._clock() - begun, beside=False)

    def _most(self, batch: Batch) -> int:
        """How many tokens could be drafted: all that do not count must be taken out again, and of
        those that do none may be too many.
        """
        left: int = batch.max_tokens[0] - batch._num_tokens[0]
        drafter = self._drafter
        own = drafter.room - drafter.behind(batch.tokens[0])
        return min(left, room(batch.prompt_cache), own + 1) - 1

    def _deep(self, followed: _Followed, most: int) -> int:
        """How many tokens to draft now."""
        if self._depth is not None:
            return min(self._depth, most)
        depth = self._worth.depth(followed.chance.value, most)
        return 1 if depth == 0 and followed.rested >= followed.rest else depth

    def _plain(self, followed: _Followed, batch: Batch) -> list[Any]:
        begun = self._clock()
        responses = _plainly(batch)
        if followed.settled:
            self._worth.costs.took(0, self._clock() - begun)
        followed.settled = True
        followed.rested += 1
        return responses

    def _learn(self, followed: _Followed, depth: int, accepted: int, seconds: float) -> None:
        self._worth.costs.took(depth, seconds)
        self._worth.saw(followed.chance, depth, accepted)
        tried_again = followed.rested >= followed.rest
        followed.rest = min(2 * followed.rest, LONGEST_REST) if tried_again else REST
        followed.settled, followed.rested = False, 0
        self._told.append(Drafts(followed.uid, depth, accepted))

    # -- drafting

    def _draft(self, batch: Batch, pending: int, depth: int) -> list[Any]:
        """The responses of one round: `pending`, the batch's next token, and drafts."""
        tokens: list[int] = batch.tokens[0]
        sampler, width = batch.samplers[0], self._drafter.width
        drafts = self._drafter.draft(tokens, pending, depth, lambda n: foreseen(sampler, n, width))
        inputs = mx.concatenate([batch._next_tokens, drafts.astype(batch._next_tokens.dtype)])
        logits = batch.model(inputs[None], cache=batch.prompt_cache)[0]
        said = _check(batch, inputs, logits)
        trim_prompt_cache(batch.prompt_cache, 1 + depth - len(said))
        tokens += [response.token for response in said]
        self._drafter.settle(tokens)
        if said[-1].finish_reason is not None:
            said[-1].prompt_cache, said[-1].all_tokens = batch.extract_cache(0), tokens
            batch.filter([])
        return said


def _plainly(batch: Batch) -> list[Any]:
    responses: list[Any] = batch.next()
    return responses


def _check(batch: Batch, inputs: mx.array, logits: mx.array) -> list[Any]:
    """What is said with this step; what is drawn behind that is the batch's next token."""
    mx.async_eval(logits)  # type: ignore[no-untyped-call]
    drafted: list[int] = inputs.tolist()  # type: ignore[assignment]
    said = [_said(batch, drafted[0], batch._next_logprobs[0])]
    draw = _drawn_together if batch.is_plain else _drawn_in_turn
    for n, (value, token, rows) in enumerate(draw(batch, inputs, logits), start=1):
        batch._next_tokens, batch._next_logprobs = token, rows
        over = said[-1].finish_reason is not None
        if over or n == len(drafted) or value != drafted[n]:
            break
        said.append(_said(batch, value, rows[0]))
    mx.eval([one.logprobs for one in said if one.logprobs is not None])
    return said


def _said(batch: Batch, token: int, row: Any) -> Any:
    """The response of one more token."""
    batch._num_tokens[0] += 1
    finish = "length" if batch._num_tokens[0] >= batch.max_tokens[0] else None
    if batch._matchers[0].advance(token):
        finish = "stop"
    return batch.Response(batch.uids[0], token, row, finish, None, None)


Drawn = tuple[int, mx.array, list[mx.array | None]]
"""A token, as the batch keeps it, and its log-probabilities."""


def _drawn_together(batch: Batch, _: mx.array, logits: mx.array) -> Iterator[Drawn]:
    """Behind each of the inputs, the likeliest."""
    best = batch.samplers[0](logits)
    values: list[int] = best.tolist()
    for n, value in enumerate(values):
        yield value, best[n : n + 1], batch.scores(logits[n : n + 1])


def _drawn_in_turn(batch: Batch, inputs: mx.array, logits: mx.array) -> Iterator[Drawn]:
    """Behind each of the inputs, when those before are said."""
    for n in range(len(inputs)):
        token, rows, contexts = batch.draw(logits[n : n + 1], inputs[n : n + 1])
        mx.eval(token, contexts)
        value: int = token.item()  # type: ignore[assignment]
        yield value, token, rows
