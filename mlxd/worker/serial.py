"""The engine for models whose caches do not merge: the same verbs, one sequence at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import PREFILL_BESIDE_DECODE
from mlxd.worker.engine import Processor, Prompt, Step
from mlxd.worker.pace import Pace
from mlxd.worker.quantised import QuantisedCache
from mlxd.worker.tuning import Tuned

PREFILL_CHUNK = PREFILL_BESIDE_DECODE


@dataclass(slots=True)
class _Token:
    uid: int
    token: int
    logprobs: Any
    finish_reason: str | None


class SerialEngine:
    """First come, first served. A step is one token, or one chunk of one prompt."""

    def __init__(
        self,
        model: Any,
        stop_tokens: Iterable[int],
        kv: QuantisedCache | None = None,
        *,
        tuned: Tuned | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._pace = Pace(tuned, gpu=mx.metal.is_available() or mx.cuda.is_available())
        self._model = model
        self._kv = kv
        self._stop_tokens = frozenset(stop_tokens)
        self._waiting: deque[tuple[int, Prompt]] = deque()
        self._current: tuple[int, Iterator[_Token | None]] | None = None
        self._next_uid = 0

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        if any(not prompt.tokens or prompt.max_tokens <= 0 for prompt in prompts):
            raise ValueError("a sequence needs a prompt and room for a token")
        uids = list(range(self._next_uid, self._next_uid + len(prompts)))
        self._next_uid += len(prompts)
        self._waiting.extend(zip(uids, prompts, strict=True))
        return uids

    def remove(self, uids: Sequence[int]) -> None:
        gone = set(uids)
        if self._current is not None and self._current[0] in gone:
            self._current = None
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in gone)

    def step(self) -> Step:
        started: list[int] = []
        if self._current is None:
            if not self._waiting:
                return Step([], [])
            uid, prompt = self._waiting.popleft()
            self._current = uid, self._run(uid, prompt)
            started.append(uid)
        token = next(self._current[1])
        if token is None:
            return Step([], started)
        if token.finish_reason is not None:
            self._current = None
        return Step([token], started)

    def __len__(self) -> int:
        return len(self._waiting) + (self._current is not None)

    def _run(self, uid: int, prompt: Prompt) -> Iterator[_Token | None]:
        """None after each chunk of the prompt, then the tokens."""
        cache = make_prompt_cache(self._model)
        for part in _parts(prompt):
            yield from self._prefill(part, cache)
        generated = generate_step(
            mx.array(prompt.tokens[-1:]),
            self._model,
            max_tokens=prompt.max_tokens,
            sampler=prompt.sampler,
            logits_processors=_processors(prompt),
            prompt_cache=cache,
            **self._quantising(),
        )
        for n, (token, logprobs) in enumerate(generated, start=1):
            finish = "length" if n == prompt.max_tokens else None
            if token in self._stop_tokens:
                finish = "stop"
            row = logprobs.astype(mx.float32) if prompt.scored else None
            yield _Token(uid, token, row, finish)

    def _quantising(self) -> dict[str, int]:
        if self._kv is None:
            return {}
        bits, group = self._kv.bits, self._kv.group
        return {"kv_bits": bits, "kv_group_size": group, "quantized_kv_start": 0}

    def _prefill(self, tokens: list[int], cache: list[Any]) -> Iterator[None]:
        done = 0
        while done < len(tokens):
            begun = self._clock()
            with mx.stream(generation_stream):
                chunk = mx.array(tokens[done : done + self._size(done)])
                self._model(chunk[None], cache=cache)
                if self._kv is not None:
                    self._kv.apply(cache)
                mx.eval([c.state for c in cache])
            mx.clear_cache()
            done += chunk.size
            seconds = self._clock() - begun
            self._pace.prefilled(chunk.size, seconds, decoding=False, length=done)
            yield None

    def _size(self, done: int) -> int:
        """Of the next chunk of a part. Quantised caches are read again in the same chunks only."""
        if self._kv is not None:
            return PREFILL_CHUNK
        left = PREFILL_CHUNK - done % PREFILL_CHUNK
        return min(left, self._pace.tokens(1, done, decoding=False))


def _parts(prompt: Prompt) -> list[list[int]]:
    """All but the last token, cut where the engine that began with it had quantised its caches:
    before the last token of the prompt and behind it. Within a part more is exact than later.
    """
    begun = len(prompt.tokens) - prompt.answered
    *read, _ = prompt.tokens
    return [read[: begun - 1], read[begun - 1 : begun], read[begun:]]


def _processors(prompt: Prompt) -> list[Processor]:
    """A constraint has taken what was there before, and sees the new tokens alone."""
    constraint = [prompt.constraint] if prompt.constraint is not None else []
    return [*_seeing(prompt.tokens[:-1], prompt.processors), *constraint]


def _seeing(earlier: list[int], processors: tuple[Processor, ...]) -> list[Processor]:
    """The processors, shown the tokens of a prefill that generate_step did not run itself."""
    if not processors:
        return []
    prefix = mx.array(earlier, dtype=mx.int32)

    def shown(processor: Processor) -> Processor:
        def process(tokens: mx.array, logits: mx.array) -> mx.array:
            return processor(mx.concatenate([prefix, tokens.astype(mx.int32)]), logits)

        return process

    return [shown(processor) for processor in processors]
