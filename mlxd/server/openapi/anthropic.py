"""Anthropic's API; its lists of models are beside OpenAI's."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.dialects import anthropic
from mlxd.dialects.shaping import TEXT, refer
from mlxd.server.openapi import failures
from mlxd.server.openapi.openai import RESUMING
from mlxd.server.openapi.operation import EVENTS, JSON, Operation, Parameter, json_of, streamed

_RAISES = (*failures.EDGE, *failures.BODY, *failures.RUN, *failures.RESUMED)
_VERSION = Parameter("anthropic-version", "header", TEXT, "Taken, and without effect.")


def operations() -> Iterator[Operation]:
    words = "The whole answer, or server-sent events with `stream`."
    answers = {200: streamed(EVENTS, "AnthropicAnswer", ("AnthropicEvent",), words)}
    yield Operation(
        "POST", anthropic.MessagesCodec.path, "Go on with a conversation.", "Anthropic", answers,
        _RAISES, asks={JSON: refer("AnthropicMessagesRequest")},
        parameters=(*RESUMING, _VERSION), says=("Anthropic",), counted=True,
    )  # fmt: skip
    yield Operation(
        "POST", anthropic.CountCodec.path, "Count the tokens of such a request.", "Anthropic",
        {200: json_of("AnthropicCount")}, _RAISES, asks={JSON: refer("AnthropicCountRequest")},
        parameters=(*RESUMING, _VERSION), says=("Anthropic",), counted=True,
    )  # fmt: skip
