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
from mlx_lm.generate import BatchGenerator, PromptProcessingBatch

from mlxd.core.footprint import PREFILL_ALONE, PREFILL_ROWS, chunk_tokens
from mlxd.worker.engine import COMPLETION_BATCH, Processor, Prompt, Step
from mlxd.worker.groups import Groups
from mlxd.worker.pace import Pace
from mlxd.worker.sampling import greedy


class _Prompts(PromptProcessingBatch):  # type: ignore[misc]
    """Prompts that note how many tokens a step has read, padding included."""

    read = 0

    def prompt(self, tokens: list[list[int]]) -> None:
        self.read = len(tokens) * max(map(len, tokens), default=0)
        super().prompt(tokens)


class _Decoding:
    """The groups, as a generator asks for them."""

    def __init__(self, groups: Groups) -> None:
        self.extend = groups.join
        self.next = groups.step
        self._groups = groups

    @property
    def uids(self) -> list[int]:
        return [uid for batch in self._groups.batches for uid in batch.uids]

    def filter(self, keep: Sequence[int]) -> None:
        kept = set(keep)
        self._groups.remove(uid for row, uid in enumerate(self.uids) if row not in kept)

    def __len__(self) -> int:
        return len(self._groups)


class MlxEngine:
    """Any number of sequences, joining and leaving one running batch."""

    def __init__(
        self,
        model: Any,
        stop_tokens: Iterable[int],
        *,
        batches: Groups | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
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
        self._groups = Groups(model) if batches is None else batches
        self._generator._generation_batch = _Decoding(self._groups)
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
        self._groups.scored.update(
            uid for uid, prompt in zip(uids, prompts, strict=True) if prompt.scored
        )
        self._groups.constraints.update(
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
        return Step(tokens, started)

    def __len__(self) -> int:
        return len(self._alive)

    def _forget(self, uids: Sequence[int]) -> None:
        self._alive.difference_update(uids)
        self._waiting.difference_update(uids)
        self._groups.scored.difference_update(uids)
        for uid in uids:
            self._groups.constraints.pop(uid, None)

    def _size_prefill(self) -> None:
        """A chunk is as long for each prompt, so the fewer share it, the longer it may be.

        Where time bounds it, too, several make up one that goes by `chunk_tokens` alone, and none
        is part of two: so none takes more memory than was predicted for those.
        """
        generator = self._generator
        prompts = generator._currently_processing
        room = min(PREFILL_ROWS - len(prompts), generator.completion_batch_size - len(self._groups))
        entering = list(islice(generator._unprocessed_sequences, max(0, room)))
        segments = [prompt[0] for prompt in prompts] + [sequence[1] for sequence in entering]
        rows = sum(not _is_last_token(left) for left in segments)
        decoding = bool(len(self._groups) or rows < len(segments))
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
