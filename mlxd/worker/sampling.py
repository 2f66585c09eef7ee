"""How the next token of one request is drawn: its own seed, its own penalties, and never a raise.

A processor or sampler that raised inside a step would leave the caches of the whole batch one
token ahead of their sequences. So everything here that runs in a step goes through a `Guard`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from mlxd.core.request import Sampling
from mlxd.worker.engine import Processor, Sampler

DEFAULT_TEMPERATURE = 1.0
DEFAULT_WINDOW = 64
_COLDEST = 1e-6
_MASK = 2**64 - 1


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


@dataclass(slots=True)
class Guard:
    """Keeps the first error of one request's samplers and processors, in place of raising it."""

    error: Exception | None = None

    def processor(self, process: Processor) -> Processor:
        """`process`, or the logits as they were when it fails."""

        def guarded(tokens: mx.array, logits: mx.array) -> mx.array:
            try:
                return process(tokens, logits)
            except Exception as error:  # noqa: BLE001 - the loop ends the request that owns it
                self.error = self.error or error
                return logits

        return guarded

    def sampler(self, sample: Sampler) -> Sampler:
        """`sample`, or the likeliest token when it fails."""
        return _Guarded(sample, self)


@dataclass(frozen=True, slots=True)
class _Guarded:
    sample: Sampler
    guard: Guard

    def __call__(self, logits: mx.array) -> mx.array:
        try:
            return self.sample(logits)
        except Exception as error:  # noqa: BLE001 - the loop ends the request that owns it
            self.guard.error = self.guard.error or error
            return greedy(logits)


def foreseen(sampler: Sampler, ahead: int, width: int) -> Sampler:
    """What draws as `sampler` will behind `ahead` more tokens, and leaves it as it is.

    From like logits of `width` tokens it mostly draws the same: both take the same chance.
    """
    draw = sampler.sample if isinstance(sampler, _Guarded) else sampler
    if not isinstance(draw, Draw):
        return greedy
    return replace(draw, drawn=draw.drawn + ahead, top_k=_top_k(draw.top_k, width))


def sampler_of(sampling: Sampling, guard: Guard, *, vocabulary: int, drawn: int = 0) -> Sampler:
    """Greedy requests share one object: a batch of them is then sampled in one call.

    `drawn`: how many tokens of the answer there are already.
    """
    temperature = sampling.temperature
    if temperature is None:
        temperature = DEFAULT_TEMPERATURE
    if temperature <= 0:
        return greedy
    return guard.sampler(
        Draw(
            seed=sampling.seed if sampling.seed is not None else fresh_seed(),
            temperature=max(temperature, _COLDEST),
            top_k=_top_k(sampling.top_k, vocabulary),
            top_p=_fraction(sampling.top_p, off=1.0) or _COLDEST,
            min_p=_fraction(sampling.min_p, off=0.0),
            drawn=drawn,
        )
    )


def processors_of(sampling: Sampling, guard: Guard, *, prompt_tokens: int) -> list[Processor]:
    """What changes the logits before they are sampled; empty for most requests."""
    processors: list[Processor] = []
    window = DEFAULT_WINDOW if sampling.repeat_last_n is None else sampling.repeat_last_n
    if window != 0:
        repeat = sampling.repeat_penalty
        if repeat is not None and repeat > 0 and repeat != 1:
            processors.append(partial(_repeat, window, repeat))
        presence = sampling.presence_penalty or 0.0
        frequency = sampling.frequency_penalty or 0.0
        if presence or frequency:
            processors.append(_Presence(window, prompt_tokens, presence, frequency))
    if sampling.logit_bias:
        processors.append(_bias(dict(sampling.logit_bias)))
    return [guard.processor(process) for process in processors]


def no_end(tokens: Iterable[int], prompt_tokens: int, least: float) -> Processor:
    """Keeps `tokens`, which end an answer, from coming before it has `least` tokens."""
    ids: list[mx.array] = []

    def process(seen: mx.array, logits: mx.array) -> mx.array:
        if len(seen) - prompt_tokens >= least:
            return logits
        if not ids:
            ids.append(mx.array(list(tokens)))
        logits[:, ids[0]] = -mx.inf
        return logits

    return process


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(8), "big")


@dataclass(slots=True)
class Draw:
    """A seeded sampler. Its n-th token depends on (seed, n) and the logits, not on its company."""

    seed: int
    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    drawn: int = 0
    """How many tokens were drawn; a request resumed after n tokens starts at n."""

    def __call__(self, logits: mx.array) -> mx.array:
        key = mx.random.key(_mixed(self.seed, self.drawn))
        self.drawn += 1
        logits = logits.astype(mx.float32)
        if not self.top_k and self.top_p >= 1:
            return mx.random.categorical(self._warm(self._at_least(logits)), key=key)
        order = self._ranked(logits)
        ranked = mx.take_along_axis(logits, order, axis=-1)
        choice = mx.random.categorical(self._warm(self._nucleus(ranked)), key=key)
        return mx.take_along_axis(order, choice[:, None], axis=-1)[:, 0]

    def _ranked(self, logits: mx.array) -> mx.array:
        """The tokens that top_k leaves, likeliest first."""
        if not self.top_k:
            return mx.argsort(-logits, axis=-1)
        best = mx.argpartition(-logits, kth=self.top_k - 1, axis=-1)[:, : self.top_k]
        within = mx.argsort(-mx.take_along_axis(logits, best, axis=-1), axis=-1)
        return mx.take_along_axis(best, within, axis=-1)

    def _nucleus(self, ranked: mx.array) -> mx.array:
        if self.top_p < 1:
            chances = mx.softmax(ranked, axis=-1)
            before = mx.cumsum(chances, axis=-1) - chances
            ranked = mx.where(before < self.top_p, ranked, -mx.inf)
        return self._at_least(ranked)

    def _at_least(self, logits: mx.array) -> mx.array:
        if self.min_p <= 0:
            return logits
        floor = mx.max(logits, axis=-1, keepdims=True) + mx.log(mx.array(self.min_p))
        return mx.where(logits >= floor, logits, -mx.inf)

    def _warm(self, logits: mx.array) -> mx.array:
        """From the best down, so that a near-zero temperature does not overflow."""
        best = mx.max(logits, axis=-1, keepdims=True)
        return (logits - best) * (1.0 / self.temperature)


def _mixed(seed: int, n: int) -> int:
    """splitmix64: neighbouring (seed, n) give unrelated keys."""
    z = (seed + (n + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _top_k(top_k: int | None, vocabulary: int) -> int:
    return top_k if top_k is not None and 0 < top_k < vocabulary else 0


def _fraction(value: float | None, *, off: float) -> float:
    return off if value is None else min(max(value, 0.0), 1.0)


def _recent(tokens: mx.array, window: int, earliest: int = 0) -> mx.array:
    """The last `window` tokens (all, if negative), none from before `earliest`."""
    start = earliest if window < 0 else max(earliest, len(tokens) - window)
    return tokens[start:]


def _repeat(window: int, penalty: float, tokens: mx.array, logits: mx.array) -> mx.array:
    recent = _recent(tokens, window)
    seen = logits[:, recent]
    logits[:, recent] = mx.where(seen < 0, seen * penalty, seen / penalty)
    return logits


@dataclass(frozen=True, slots=True)
class _Presence:
    """Presence and frequency penalties: on what was generated, not on the prompt."""

    window: int
    prompt_tokens: int
    presence: float
    frequency: float

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        recent = _recent(tokens, self.window, self.prompt_tokens)
        if not len(recent):
            return logits
        if self.frequency:
            logits = logits.at[:, recent].subtract(mx.array(self.frequency, dtype=logits.dtype))
        if self.presence:
            logits[:, recent] = logits[:, recent] - self.presence
        return logits


def _bias(bias: dict[int, float]) -> Processor:
    made: list[tuple[mx.array, mx.array]] = []

    def process(_: mx.array, logits: mx.array) -> mx.array:
        if not made:
            values = mx.array(list(bias.values())).astype(logits.dtype)
            made.append((mx.array(list(bias)), values))
        ids, values = made[0]
        return logits.at[:, ids].add(values)

    return process
