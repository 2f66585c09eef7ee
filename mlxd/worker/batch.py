"""Sequences that decode in one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch
from mlx_lm.models.cache import TokenBuffer

from mlxd.worker.engine import Constraint, Sampler
from mlxd.worker.masks import masked
from mlxd.worker.sampling import greedy


class Batch(GenerationBatch):  # type: ignore[misc]
    """A generation batch that works out log-probabilities for `scored` sequences only.

    Samplers are therefore shown logits; they differ from log-probabilities by a constant, which
    no sampler can see.
    """

    scored: set[int]
    constraints: dict[int, Constraint]
    fresh: set[int]
    """Sequences whose next tokens are the last ones of their prompts."""
    _next_tokens: mx.array
    _next_logprobs: list[mx.array | None]
    _begun = False
    is_told = False
    """Its next tokens are known to whoever wants them, and not yet in the caches."""

    @classmethod
    def of(cls, read: PromptProcessingBatch, last: list[int]) -> Batch:
        """Takes over prompts that are read but for their last tokens."""
        batch: Batch = cls.empty(read.model, read.fallback_sampler)
        batch.uids, batch.prompt_cache, batch.tokens = read.uids, read.prompt_cache, read.tokens
        batch.samplers, batch.logits_processors = read.samplers, read.logits_processors
        batch.max_tokens, batch.stop_sequences = read.max_tokens, read.stop_sequences
        batch._token_context = [TokenBuffer(tokens) for tokens in read.tokens]
        batch._num_tokens = [0] * len(read.uids)
        batch._matchers = [stops.matcher() for stops in read.stop_sequences]
        batch._next_tokens = mx.array(last, mx.uint32)
        batch._next_logprobs = [None] * len(read.uids)
        batch.is_told = True
        return batch

    def early(self) -> list[Any]:
        """In place of `next`, behind `catch_up`: its next tokens as soon as they are there, and
        none begun behind them.

        To begin with those takes nearly as long as to compute them: MLX lets no more than a few
        operations wait (docs/decisions/0016-prefill.md).
        """
        self.is_told = True
        responses: list[Any] = self.next()
        return responses

    def begin(self) -> None:
        """Start to compute the tokens after those that the next step gives, if it has not begun."""
        if self._begun or not self.uids:
            return
        self.catch_up()
        self._begun = True
        self._advance()

    def catch_up(self) -> None:
        """Start to compute the tokens behind those that are told: then its next ones are told by
        a step like others. Whoever goes by which tokens are next does so before.
        """
        if self.is_told and self.uids:
            self._advance()
            tokens, _ = _evaluated(self._current_tokens, self._current_logprobs)
            self._note(tokens)
        self.is_told = False

    def _advance(self) -> None:
        """Start to compute the tokens behind the next ones, which are the current ones then."""
        inputs = self._current_tokens = self._next_tokens
        self._current_logprobs = self._next_logprobs
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, self._next_logprobs, contexts = self.draw(logits, inputs)
        self.fresh.difference_update(self.uids)
        mx.async_eval(self._next_tokens, self._next_logprobs, contexts)  # type: ignore[no-untyped-call]

    def draw(
        self, logits: mx.array, inputs: mx.array
    ) -> tuple[mx.array, list[mx.array | None], list[mx.array]]:
        """The token behind each of `inputs`, its log-probabilities, and what the processors were
        shown; none of it computed yet. Counts `inputs` as said.
        """
        logits, contexts = self._process(logits, inputs)
        if self.constraints:
            logits = self._constrained(logits, inputs)
        return self._sample(logits), self.scores(logits), contexts

    def scores(self, logits: mx.array) -> list[mx.array | None]:
        """Log-probabilities of the rows whose sequences want them."""
        return [
            _log_softmax(logits[e]) if uid in self.scored else None
            for e, uid in enumerate(self.uids)
        ]

    @property
    def is_plain(self) -> bool:
        """All tokens are the likeliest by the model's own logits."""
        return (
            not self.constraints
            and not any(self.logits_processors)
            and all(sampler is greedy for sampler in self.samplers)
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens that are in the caches, of each sequence."""
        return [len(tokens) for tokens in self.tokens]

    def divide(self, parts: Sequence[Sequence[int]]) -> list[Batch]:
        """A batch for each of these lists of rows, padded no more than it has to be.

        This one is of no use any more: layer by layer its caches are given up for theirs, so that
        no more than a layer is held twice.
        """
        batches = [self._with_rows(part) for part in parts]
        for layer, cache in enumerate(self.prompt_cache):
            for batch, part in zip(batches, parts, strict=True):
                rows = [cache.extract(row) for row in part]
                batch.prompt_cache.append(rows[0].merge(rows))
            mx.eval([batch.prompt_cache[layer].state for batch in batches])
            self.prompt_cache[layer] = None
        return batches

    def _with_rows(self, rows: Sequence[int]) -> Batch:
        """All that belongs to these rows, but for their caches."""
        batch = copy.copy(self)
        batch.prompt_cache = []
        batch.filter(list(rows))
        return batch

    def _step(self) -> tuple[list[int], list[Any]]:
        """As upstream, but for what becomes of the logits."""
        if self.is_told:
            return _evaluated(self._next_tokens, self._next_logprobs)
        self.begin()
        self._begun = False
        tokens, rows = _evaluated(self._current_tokens, self._current_logprobs)
        self._note(tokens)
        return tokens, rows

    def _note(self, tokens: list[int]) -> None:
        """They are in the caches, or will be before anything else is."""
        for sequence, token in zip(self.tokens, tokens, strict=True):
            sequence.append(token)

    def _constrained(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """The forward pass has begun, and goes on while the constraints are asked: they wait for
        the last step alone, and the other sequences for nothing.
        """
        constraints = [self.constraints.get(uid) for uid in self.uids]
        if not any(constraints):
            return logits
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens: list[int] = inputs.tolist()  # type: ignore[assignment]
        for uid, constraint, token in zip(self.uids, constraints, tokens, strict=True):
            if constraint is not None and uid not in self.fresh:
                constraint.take(token)
        return masked(logits, constraints)

    def _process(self, logits: mx.array, inputs: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Only sequences with processors keep the context that those read."""
        if not any(self.logits_processors):
            return logits, []
        rows, contexts = [], []
        for e, processors in enumerate(self.logits_processors):
            row = logits[e : e + 1]
            if processors:
                context = self._token_context[e].update_and_fetch(inputs[e : e + 1])
                contexts.append(context)
                for processor in processors:
                    row = processor(context, row)
            rows.append(row)
        return mx.concatenate(rows, axis=0), contexts

    def _sample(self, logits: mx.array) -> mx.array:
        """One call for the whole batch where it shares a sampler."""
        samplers: list[Sampler] = self.samplers
        first = samplers[0]
        if all(sampler is first for sampler in samplers):
            return first(logits)
        rows = [s(logits[e : e + 1]) for e, s in enumerate(samplers)]
        return mx.concatenate(rows, axis=0)


def _evaluated(
    tokens: mx.array, rows: list[mx.array | None]
) -> tuple[list[int], list[mx.array | None]]:
    mx.eval(tokens, rows)
    values: list[int] = tokens.tolist()  # type: ignore[assignment]
    return values, rows


def _log_softmax(row: mx.array) -> mx.array:
    row = row.astype(mx.float32)
    return row - mx.logsumexp(row)
