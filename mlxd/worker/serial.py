"""The engine for models whose caches do not merge: the same verbs; sequences take turns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import PREFILL_APART
from mlxd.worker.engine import Processor, Prompt, Step
from mlxd.worker.machine import pace
from mlxd.worker.quantised import QuantisedCache
from mlxd.worker.tuning import Tuned

PREFILL_CHUNK = PREFILL_APART
OPEN_SEQUENCES = 8
"""That hold a cache at one time. Each has one token in a step, so that more would each be slower,
and no sooner at their end."""


@dataclass(slots=True)
class _Token:
    uid: int
    token: int
    logprobs: Any
    finish_reason: str | None


@dataclass(slots=True)
class _Reading:
    """A prompt, of which something is left to be read."""

    uid: int
    prompt: Prompt
    parts: deque[list[int]]
    """What is left of it: its parts, the first of them begun."""
    done: int = 0
    """Tokens of the first part."""
    read: int = 0
    """Tokens of the parts before it."""
    cache: list[Any] = field(default_factory=list)

    @property
    def is_short(self) -> bool:
        """What is left is one chunk."""
        return len(self.parts) <= 1 and sum(map(len, self.parts)) - self.done <= PREFILL_CHUNK


class SerialEngine:
    """A step is one token of each sequence that decodes, and one chunk of one prompt.

    Of the prompts, those that one chunk ends come first, else the first that came; but every other
    chunk is of that, whatever comes. So a short one waits for no long one, and a long one is read.
    """

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
        self._tuned = tuned = tuned or Tuned()
        self._pace = pace(tuned)
        self._model = model
        self._kv = kv
        self._stop_tokens = frozenset(stop_tokens)
        self._waiting: dict[int, _Reading] = {}
        """Those without a cache, in order of arrival."""
        self._reading: dict[int, _Reading] = {}
        """Those that are read, in order of arrival."""
        self._decoding: dict[int, Generator[_Token, None, None]] = {}
        self._overtaken = False
        """The last chunk was of a short prompt, and a long one could have been read."""
        self._next_uid = 0

    def insert(self, prompts: Sequence[Prompt]) -> list[int]:
        if any(not prompt.tokens or prompt.max_tokens <= 0 for prompt in prompts):
            raise ValueError("a sequence needs a prompt and room for a token")
        uids = list(range(self._next_uid, self._next_uid + len(prompts)))
        self._next_uid += len(prompts)
        for uid, prompt in zip(uids, prompts, strict=True):
            self._waiting[uid] = _Reading(uid, prompt, _parts(prompt))
        return uids

    def remove(self, uids: Sequence[int]) -> None:
        for uid in uids:
            self._waiting.pop(uid, None)
            self._reading.pop(uid, None)
            if (sequence := self._decoding.pop(uid, None)) is not None:
                sequence.close()  # in this thread, which MLX insists on

    def step(self) -> Step:
        tokens = [next(sequence) for sequence in self._decoding.values()]
        for token in tokens:
            if token.finish_reason is not None:
                del self._decoding[token.uid]
        started = self._read(decoding=bool(tokens))
        return Step(tokens, started)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._reading) + len(self._decoding)

    # -- prompts

    def _read(self, *, decoding: bool) -> list[int]:
        """One chunk; returns the uid of the sequence that began with it, if one did."""
        reading = self._next()
        if reading is None:
            return []
        started = []
        if reading.uid in self._waiting:
            del self._waiting[reading.uid]
            reading.cache = make_prompt_cache(self._model)
            self._reading[reading.uid] = reading
            started.append(reading.uid)
        if reading.parts:
            self._chunk(reading, decoding=decoding)
        if not reading.parts:
            del self._reading[reading.uid]
            self._decoding[reading.uid] = self._run(reading)
        return started

    def _next(self) -> _Reading | None:
        """Whose chunk is read next. A prompt that must wait for a place is nobody's next."""
        places = OPEN_SEQUENCES - len(self._reading) - len(self._decoding)
        near = [*self._reading.values(), *(list(self._waiting.values()) if places > 0 else ())]
        short = next((one for one in near if one.is_short), None)
        long = next((one for one in near if not one.is_short), None)
        chosen = long if short is None or (long is not None and self._overtaken) else short
        if long is not None:
            self._overtaken = chosen is short
        return chosen

    def _chunk(self, reading: _Reading, *, decoding: bool) -> None:
        begun, cache = self._clock(), reading.cache
        part = reading.parts[0]
        with mx.stream(generation_stream):
            size = self._size(reading, decoding=decoding)
            chunk = mx.array(part[reading.done : reading.done + size])
            self._model(chunk[None], cache=cache)
            if self._kv is not None:
                self._kv.apply(cache)
            mx.eval([c.state for c in cache])
        mx.clear_cache()
        reading.done += chunk.size
        seconds, read = self._clock() - begun, reading.read + reading.done
        self._pace.prefilled(chunk.size, seconds, beside=False, length=read)
        if reading.done == len(part):
            reading.read += reading.done
            reading.parts.popleft()
            reading.done = 0

    def _size(self, reading: _Reading, *, decoding: bool) -> int:
        """Of the next chunk of a part. Quantised caches are read again in the same chunks only."""
        if self._kv is not None:
            return PREFILL_CHUNK
        left = PREFILL_CHUNK - reading.done % PREFILL_CHUNK
        left = min(left, self._tuned.now.max_tokens or left)
        position = reading.read + reading.done
        return min(left, self._pace.tokens(1, position, decoding=decoding))

    # -- answers

    def _run(self, reading: _Reading) -> Generator[_Token, None, None]:
        uid, prompt = reading.uid, reading.prompt
        generated = generate_step(
            mx.array(prompt.tokens[-1:]),
            self._model,
            max_tokens=prompt.max_tokens,
            sampler=prompt.sampler,
            logits_processors=_processors(prompt),
            prompt_cache=reading.cache,
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


def _parts(prompt: Prompt) -> deque[list[int]]:
    """All but the last token, cut where the engine that began with it had quantised its caches:
    before the last token of the prompt and behind it. Within a part more is exact than later.
    """
    begun = len(prompt.tokens) - prompt.answered
    *read, _ = prompt.tokens
    parts = (read[: begun - 1], read[begun - 1 : begun], read[begun:])
    return deque(part for part in parts if part)


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
