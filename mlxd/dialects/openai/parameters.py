"""The parameters that both of OpenAI's endpoints take, and vLLM's additions to them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, TypedDict

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.dialects.fields import Fields, check_stops
from mlxd.dialects.keep_alive import keep_alive
from mlxd.dialects.openai.choices import LARGEST_SEED
from mlxd.dialects.openai.errors import complain
from mlxd.dialects.openai.formats import with_format
from mlxd.dialects.standing import priority_or_tier, user

FALLBACK = Sampling(temperature=1.0, top_p=1.0)
_ALL_SO_FAR = replace(FALLBACK, repeat_last_n=-1)
"""Where a client asks for penalties: here they look at the whole answer, and vLLM's at the prompt,
too, and not at the last tokens alone.
"""

TOKEN_ID = re.compile(r"-?[0-9]{1,10}", re.ASCII)
LARGEST_TOKEN_ID = 2**31 - 1
MOST_BIASES = 1024
MOST_STOPS = 4


class StreamOptions(TypedDict, total=False):
    """As in Call."""

    include_usage: bool
    padded: bool


def read_request(body: dict[str, Any]) -> tuple[Fields, GenerationRequest]:
    """What both endpoints read alike; prompt, length and logprobs are still missing."""
    fields = Fields(body, complain)
    model = fields.text("model")
    if not model:
        raise InvalidRequest("you must provide a model parameter", param="model")
    sampling = _sampling(fields)
    request = GenerationRequest(
        model=model,
        min_tokens=fields.integer("min_tokens", low=0) or 0,
        ignore_eos=fields.flag("ignore_eos") or False,
        stop=_stop(fields),
        sampling=sampling,
        fallback=_ALL_SO_FAR if _penalises(sampling) else FALLBACK,
        keep_alive=keep_alive(fields),
        priority=priority_or_tier(fields),
        user=user(fields, "safety_identifier", "user"),
        stream=fields.flag("stream") or False,
    )
    return fields, with_format(fields, request)


def limited(request: GenerationRequest, max_tokens: int | None) -> GenerationRequest:
    """The same, of at most so many tokens."""
    if max_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequest("min_tokens must be at most max_tokens", param="min_tokens")
    return request if max_tokens is None else replace(request, max_tokens=max_tokens)


def stream_options(fields: Fields) -> StreamOptions:
    options = fields.fields("stream_options")
    if options is None:
        return {}
    return {
        "include_usage": options.flag("include_usage") or False,
        "padded": options.flag("include_obfuscation") or False,
    }


def token_id(value: Any) -> bool:
    """Whether this can be one: an integer that every vocabulary's index type holds."""
    return type(value) is int and 0 <= value <= LARGEST_TOKEN_ID


def _sampling(fields: Fields) -> Sampling:
    seed = fields.integer("seed")
    top_k = fields.integer("top_k", low=-1)
    return Sampling(
        temperature=fields.number("temperature", low=0.0, high=2.0),
        top_p=fields.number("top_p", low=0.0, high=1.0),
        top_k=None if top_k is None else max(top_k, 0),
        min_p=fields.number("min_p", low=0.0, high=1.0),
        repeat_penalty=fields.number("repetition_penalty", low=0.01, high=100.0),
        presence_penalty=fields.number("presence_penalty", low=-2.0, high=2.0),
        frequency_penalty=fields.number("frequency_penalty", low=-2.0, high=2.0),
        logit_bias=_logit_bias(fields),
        seed=None if seed is None else seed & LARGEST_SEED,
    )


def _penalises(sampling: Sampling) -> bool:
    repeats = sampling.repeat_penalty not in (None, 1.0)
    return bool(sampling.presence_penalty or sampling.frequency_penalty or repeats)


def _logit_bias(fields: Fields) -> tuple[tuple[int, float], ...] | None:
    biases = fields.fields("logit_bias")
    if biases is None:
        return None
    names = fields.mapping("logit_bias") or {}
    if len(names) > MOST_BIASES:
        raise InvalidRequest(f"logit_bias takes at most {MOST_BIASES} tokens", param="logit_bias")
    return tuple((_biased_token(name), _bias(biases, name)) for name in names)


def _biased_token(name: str) -> int:
    if not TOKEN_ID.fullmatch(name) or not token_id(int(name)):
        raise InvalidRequest(
            f"logit_bias: '{name[:40]}' is not a token id (an integer from 0, as a string)",
            param="logit_bias",
        )
    return int(name)


def _bias(biases: Fields, name: str) -> float:
    value = biases.number(name, low=-100.0, high=100.0)
    if value is None:
        raise biases.wrong(name, "number")
    return value


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if isinstance(value, str):
        strings: tuple[str, ...] = (value,)
    else:
        strings = fields.texts("stop", "string or array of strings")
    if len(strings) > MOST_STOPS:
        raise InvalidRequest(f"stop takes at most {MOST_STOPS} strings", param="stop")
    check_stops(strings, "stop")
    return tuple(text for text in strings if text)
