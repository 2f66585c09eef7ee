"""Ollama's `options`: what clients may set for one request, and what holds where they do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import Sampling
from mlxd.dialects.fields import Fields, Json, check_stops

FALLBACK = Sampling(
    temperature=0.8,
    top_p=0.9,
    top_k=40,
    min_p=0.0,
    repeat_penalty=1.0,
    repeat_last_n=64,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)

# Accepted, and without effect: how a model is loaded is the operator's to say.
LOAD_INTEGERS = ("num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict")
LOAD_FLAGS = ("use_mmap",)
IDLE_INTEGERS = ("num_keep",)
IDLE_FLOATS = ("typical_p",)
MOST_STOPS = 64
_LEAST_CONTEXT = 4
_LARGEST = 1e4
"""Beyond it a number means nothing and could leave the range of the engine's float16."""

_TYPE_NAMES = {"number": "float32"}


@dataclass(frozen=True, slots=True)
class Options:
    sampling: Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    context: int | None = None
    """`num_ctx`, for a model that is created. Of a request it says nothing: Ollama sets memory
    aside by it, and cuts what is longer; here a request takes the memory that it needs.
    """


def read_options(values: Json) -> Options:
    """Null is skipped and an unknown name ignored; a wrong type raises InvalidRequest."""
    options = Fields(values, _complain)
    for name in (*LOAD_INTEGERS, *IDLE_INTEGERS):
        options.integer(name, truncate=True)
    for name in LOAD_FLAGS:
        options.flag(name)
    for name in IDLE_FLOATS:
        options.number(name)
    return Options(
        sampling=_sampling(options),
        max_tokens=positive(options.integer("num_predict", truncate=True)),
        stop=_stop(options),
        context=_at_least(positive(options.integer("num_ctx", truncate=True)), _LEAST_CONTEXT),
    )


def positive(value: int | None) -> int | None:
    """Ollama's "no limit" is anything from zero down."""
    return value if value is not None and value > 0 else None


def _sampling(options: Fields) -> Sampling:
    return Sampling(
        temperature=_clamped(options, "temperature", 0.0, _LARGEST),
        top_p=_clamped(options, "top_p", 0.0, 1.0),
        top_k=_at_least(options.integer("top_k", truncate=True), 0),
        min_p=_clamped(options, "min_p", 0.0, 1.0),
        repeat_penalty=_repeat_penalty(options),
        repeat_last_n=_at_least(options.integer("repeat_last_n", truncate=True), -1),
        presence_penalty=_clamped(options, "presence_penalty", -_LARGEST, _LARGEST),
        frequency_penalty=_clamped(options, "frequency_penalty", -_LARGEST, _LARGEST),
        seed=_seed(options),
    )


def _clamped(options: Fields, name: str, low: float, high: float) -> float | None:
    value = options.number(name)
    return None if value is None else min(max(value, low), high)


def _at_least(value: int | None, low: int) -> int | None:
    return None if value is None else max(value, low)


def _repeat_penalty(options: Fields) -> float | None:
    """Zero and below would divide by nothing; Ollama takes them as off."""
    value = options.number("repeat_penalty")
    if value is None:
        return None
    return min(max(value, 1 / _LARGEST), _LARGEST) if value > 0 else 1.0


def _seed(options: Fields) -> int | None:
    value = options.integer("seed", truncate=True)
    return None if value is None or value == -1 else value & (2**63 - 1)


def _stop(options: Fields) -> tuple[str, ...]:
    strings = tuple(text for text in options.texts("stop") if text)
    if len(strings) > MOST_STOPS:
        raise InvalidRequest(f'option "stop" takes at most {MOST_STOPS} strings', param="stop")
    check_stops(strings, 'option "stop"')
    return strings


def _complain(path: str, expected: str, _found: Any) -> str:
    return f'option "{path}" must be of type {_TYPE_NAMES.get(expected, expected)}'
