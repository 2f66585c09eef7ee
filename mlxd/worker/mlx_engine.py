"""The engine for models whose caches batch: mlx-lm's BatchGenerator, and the only file to name it.

Two things differ from the bare generator. Log-probabilities are sliced out and evaluated for the
sequences that asked, instead of for every row at every step. And the prefill chunk shrinks while
something decodes, so that a long prompt does not hold the running ones up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch

from mlxd.worker.engine import Prompt, Sampler, Token
from mlxd.worker.sampling import greedy

COMPLETION_BATCH = 32
PREFILL_BATCH = 8
PREFILL_CHUNK_ALONE = 2048
PREFILL_CHUNK_BESIDE_DECODE = 512


class _Batch(GenerationBatch):  # type: ignore[misc]
    """A generation batch that works out log-probabilities for `scored` sequences only.

    Samplers are therefore shown logits; they differ from log-probabilities by a constant, which
    no sampler can see.
    """

    scored: set[int]
    _next_tokens: mx.array
    _next_logprobs: list[mx.array | None]

    def _step(self) -> tuple[list[int], list[Any]]:
        """As upstream, but for what becomes of the logits."""
        inputs, rows = self._next_tokens, self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, rows
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        logits, contexts = self._process(logits, inputs)
        self._next_tokens = self._sample(logits)
        self._next_logprobs = [
            _log_softmax(logits[e]) if uid in self.scored else None
            for e, uid in enumerate(self.uids)
        ]
        mx.async_eval(self._next_tokens, self._next_logprobs, contexts)  # type: ignore[no-untyped-call]
        mx.eval(inputs, rows)
        tokens: list[int] = inputs.tolist()  # type: ignore[assignment]
        for sequence, token in zip(self.tokens, tokens, strict=True):
            sequence.append(token)
        return tokens, rows

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


def _log_softmax(row: mx.array) -> mx.array:
    row = row.astype(mx.float32)
    return row - mx.logsumexp(row)


class MlxEngine:
    """Any number of sequences, joining and leaving one running batch."""

    def __init__(self, model: Any, stop_tokens: Iterable[int]) -> None:
        self._generator = BatchGenerator(
            model,
            stop_tokens=[(token,) for token in stop_tokens],
            completion_batch_size=COMPLETION_BATCH,
            prefill_batch_size=PREFILL_BATCH,
            prefill_step_size=PREFILL_CHUNK_ALONE,
        )
        self._batch = _Batch.empty(model, greedy)
        self._batch.scored = set()
        self._generator._generation_batch = self._batch
        self._alive: set[int] = set()

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        uids: list[int] = self._generator.insert(
            [prompt.tokens for prompt in prompts],
            max_tokens=[prompt.max_tokens for prompt in prompts],
            samplers=[prompt.sampler for prompt in prompts],
            logits_processors=[list(prompt.processors) for prompt in prompts],
        )
        self._alive.update(uids)
        self._batch.scored.update(
            uid for uid, prompt in zip(uids, prompts, strict=True) if prompt.scored
        )
        return uids

    def remove(self, uids: Sequence[int]) -> None:
        self._generator.remove(uids)
        self._forget(uids)

    def step(self) -> Sequence[Token]:
        self._size_prefill()
        tokens: list[Token] = self._generator.next()[1]
        ended = [token.uid for token in tokens if token.finish_reason is not None]
        if ended:
            self._forget(ended)
        return tokens

    def __len__(self) -> int:
        return len(self._alive)

    def _forget(self, uids: Iterable[int]) -> None:
        self._alive.difference_update(uids)
        self._batch.scored.difference_update(uids)

    def _size_prefill(self) -> None:
        size = PREFILL_CHUNK_BESIDE_DECODE if self._batch.uids else PREFILL_CHUNK_ALONE
        if self._generator.prefill_step_size != size:
            self._generator.prefill_step_size = size
            self._generator._prompt_batch.prefill_step_size = size
