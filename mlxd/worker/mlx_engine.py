"""The engine for models whose caches batch: mlx-lm's BatchGenerator, and the only file to name it.

Two things differ from the bare generator. Log-probabilities are sliced out and evaluated for the
sequences that asked, instead of for every row at every step. And a step prefills a bounded number
of tokens, however many prompts share it, and fewer while something decodes or where they take
long: so cancels are heard soon, and long prompts do not hold the running sequences up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch

from mlxd.core.footprint import PREFILL_ALONE, PREFILL_ROWS, chunk_tokens
from mlxd.worker.engine import COMPLETION_BATCH, Constraint, Processor, Prompt, Sampler, Step
from mlxd.worker.masks import masked
from mlxd.worker.pace import Pace
from mlxd.worker.sampling import greedy
from mlxd.worker.speculation import Speculation


class _Batch(GenerationBatch):  # type: ignore[misc]
    """A generation batch that works out log-probabilities for `scored` sequences only.

    Samplers are therefore shown logits; they differ from log-probabilities by a constant, which
    no sampler can see.
    """

    scored: set[int]
    constraints: dict[int, Constraint]
    speculation: Speculation | None
    _next_tokens: mx.array
    _next_logprobs: list[mx.array | None]

    def next(self) -> list[Any]:
        """A lone sequence may be given several tokens."""
        if self.speculation is not None and len(self.uids) == 1:
            return self.speculation.next(self)
        return self.one()

    def one(self) -> list[Any]:
        """A token of each."""
        responses: list[Any] = super().next()
        return responses

    def _step(self) -> tuple[list[int], list[Any]]:
        """As upstream, but for what becomes of the logits."""
        inputs, rows = self._next_tokens, self._next_logprobs
        self._current_tokens, self._current_logprobs = inputs, rows
        logits = self.model(inputs[:, None], cache=self.prompt_cache)[:, -1, :]
        self._next_tokens, self._next_logprobs, contexts = self.draw(logits, inputs)
        mx.async_eval(self._next_tokens, self._next_logprobs, contexts)  # type: ignore[no-untyped-call]
        mx.eval(inputs, rows)
        tokens: list[int] = inputs.tolist()  # type: ignore[assignment]
        for sequence, token in zip(self.tokens, tokens, strict=True):
            sequence.append(token)
        return tokens, rows

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

    def _constrained(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """The forward pass has begun, and goes on while the constraints are asked: they wait for
        the last step alone, and the other sequences for nothing.
        """
        constraints = [self.constraints.get(uid) for uid in self.uids]
        if not any(constraints):
            return logits
        mx.async_eval(logits)  # type: ignore[no-untyped-call]
        tokens: list[int] = inputs.tolist()  # type: ignore[assignment]
        for constraint, token in zip(constraints, tokens, strict=True):
            if constraint is not None:
                constraint.take(token)
        return masked(logits, constraints)

    def _process(self, logits: mx.array, inputs: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Only sequences with processors keep the context that those read."""
        if not any(self.logits_processors):
            return logits, []
        each = [
            [process for process in processors if process is not self.constraints.get(uid)]
            for uid, processors in zip(self.uids, self.logits_processors, strict=True)
        ]
        if not any(each):
            return logits, []
        rows, contexts = [], []
        for e, processors in enumerate(each):
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


class _Prompts(PromptProcessingBatch):  # type: ignore[misc]
    """Prompts that note how many tokens a step has read, padding included."""

    read = 0

    def prompt(self, tokens: list[list[int]]) -> None:
        self.read = len(tokens) * max(map(len, tokens), default=0)
        super().prompt(tokens)


def _log_softmax(row: mx.array) -> mx.array:
    row = row.astype(mx.float32)
    return row - mx.logsumexp(row)


class MlxEngine:
    """Any number of sequences, joining and leaving one running batch."""

    def __init__(
        self,
        model: Any,
        stop_tokens: Iterable[int],
        *,
        speculation: Speculation | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._speculation = speculation
        self._pace = Pace(gpu=mx.metal.is_available() or mx.cuda.is_available())
        self._cell = (0, 0)
        """How long a chunk may be without regard to time, and where in the prompts one began."""
        self._generator = BatchGenerator(
            model,
            stop_tokens=[(token,) for token in stop_tokens],
            completion_batch_size=COMPLETION_BATCH,
            prefill_batch_size=PREFILL_ROWS,
            prefill_step_size=PREFILL_ALONE,
        )
        self._prompts = _Prompts.empty(model, greedy)
        self._generator._prompt_batch = self._prompts
        self._batch = _Batch.empty(model, greedy)
        self._batch.scored = set()
        self._batch.constraints = {}
        self._batch.speculation = speculation
        self._generator._generation_batch = self._batch
        self._alive: set[int] = set()
        self._waiting: set[int] = set()
        """Those alive whose prefill has not begun."""

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        uids: list[int] = self._generator.insert(
            [prompt.tokens for prompt in prompts],
            max_tokens=[prompt.max_tokens for prompt in prompts],
            samplers=[prompt.sampler for prompt in prompts],
            logits_processors=[_processors(prompt) for prompt in prompts],
        )
        self._alive.update(uids)
        self._waiting.update(uids)
        self._batch.scored.update(
            uid for uid, prompt in zip(uids, prompts, strict=True) if prompt.scored
        )
        self._batch.constraints.update(
            (uid, prompt.constraint)
            for uid, prompt in zip(uids, prompts, strict=True)
            if prompt.constraint is not None
        )
        return uids

    def remove(self, uids: Sequence[int]) -> None:
        self._generator.remove(uids)
        self._forget(uids)

    def step(self) -> Step:
        self._size_prefill()
        self._prompts.read = 0
        begun = self._clock()
        prompts, tokens = self._generator.next()
        seconds = self._clock() - begun
        if self._prompts.read:
            self._pace.prefilled(self._prompts.read, seconds, decoding=bool(tokens))
        elif not prompts:
            self._pace.decoded(seconds)
        started = [prompt.uid for prompt in prompts if prompt.uid in self._waiting]
        self._waiting.difference_update(started)
        ended = [token.uid for token in tokens if token.finish_reason is not None]
        if ended:
            self._forget(ended)
        drafts = self._speculation.told() if self._speculation is not None else ()
        return Step(tokens, started, drafts=drafts)

    def __len__(self) -> int:
        return len(self._alive)

    def _forget(self, uids: Sequence[int]) -> None:
        self._alive.difference_update(uids)
        self._waiting.difference_update(uids)
        self._batch.scored.difference_update(uids)
        for uid in uids:
            self._batch.constraints.pop(uid, None)
        if self._speculation is not None:
            self._speculation.forget(uids)

    def _size_prefill(self) -> None:
        """A chunk is as long for each prompt, so the fewer share it, the longer it may be.

        Where time bounds it, too, several make up one that goes by `chunk_tokens` alone, and none
        is part of two: so none takes more memory than was predicted for those.
        """
        generator = self._generator
        prompts = generator._currently_processing
        room = min(
            PREFILL_ROWS - len(prompts), generator.completion_batch_size - len(self._batch.uids)
        )
        entering = list(islice(generator._unprocessed_sequences, max(0, room)))
        segments = [prompt[0] for prompt in prompts] + [sequence[1] for sequence in entering]
        rows = sum(not _is_last_token(left) for left in segments)
        decoding = bool(self._batch.uids or rows < len(segments))
        most = chunk_tokens(rows, decoding=decoding)
        read = max((p[1] for p in prompts if not _is_last_token(p[0])), default=0)
        if self._cell[0] != most or read < self._cell[1]:
            self._cell = (most, read)
        left = most - (read - self._cell[1]) % most
        size = min(left, self._pace.tokens(rows, decoding=decoding))
        generator.prefill_step_size = size
        self._prompts.prefill_step_size = size


def _processors(prompt: Prompt) -> list[Processor]:
    """A sequence's first token is drawn where no constraint is known as such: there it is one of
    the processors.
    """
    return [*prompt.processors, *([prompt.constraint] if prompt.constraint is not None else [])]


def _is_last_token(segments: list[list[int]]) -> bool:
    """Of a prompt: with its last token it decodes, and takes no part in the chunk."""
    return len(segments) == 1 and len(segments[0]) == 1
