"""OpenAI's API, and the paths that it shares with Anthropic's."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.core import errors
from mlxd.dialects import openai
from mlxd.dialects.shaping import COUNT, TEXT, either, one_of, refer, text, whole
from mlxd.server.generate import RETRIES_HEADER
from mlxd.server.openapi import failures
from mlxd.server.openapi.ollama import PRIORITY
from mlxd.server.openapi.operation import (
    EVENTS,
    JSON,
    Answer,
    Errors,
    Operation,
    Parameter,
    json_of,
    streamed,
)
from mlxd.server.resume import HEADER

RESUMING = (
    PRIORITY,
    Parameter(HEADER, "header", TEXT, "The last event that a cut stream has told."),
    Parameter(RETRIES_HEADER, "header", COUNT, "Above 0: the request is sent again."),
)
_VERSION = Parameter(
    "anthropic-version", "header", TEXT, "Of Anthropic's clients, who get their own form."
)
_ID = Parameter("id", "path", text(least=1))
_SAYS = ("OpenAI",)
_BOTH = ("OpenAI", "Anthropic")
_PAGE = (
    Parameter("limit", "query", whole(1, 1000), "To Anthropic's clients: models of a page."),
    Parameter("after_id", "query", TEXT, "To Anthropic's clients: the page behind it."),
    Parameter("before_id", "query", TEXT, "To Anthropic's clients: the page before it."),
)


def operations() -> Iterator[Operation]:
    yield from _generating()
    yield from _responding()
    yield from _kept()
    yield from _models()


def _generating() -> Iterator[Operation]:
    words = "The whole answer, or server-sent events with `stream`, the last one `[DONE]`."
    for path, name, whole_name, chunk in (
        (openai.ChatCodec.path, "Chat", "ChatCompletion", "ChatChunk"),
        (openai.CompletionCodec.path, "Completion", "Completion", "CompletionChunk"),
    ):
        records = (f"OpenAI{chunk}", "OpenAIError")
        told = streamed(EVENTS, f"OpenAI{whole_name}", records, words)
        what = f"{'Go on with a conversation' if name == 'Chat' else 'Go on behind a prompt'}."
        yield generation(path, what, f"OpenAI{name}Request", told)
    told = json_of("OpenAIEmbeddings", "A vector of each input.")
    path = openai.EmbeddingsCodec.path
    yield generation(path, "Make vectors.", "OpenAIEmbeddingsRequest", told)


def _responding() -> Iterator[Operation]:
    words = "The whole answer, or server-sent events with `stream`."
    told = streamed(EVENTS, "OpenAIResponse", ("OpenAIResponseEvent",), words)
    counted = json_of("OpenAIInputTokens", "How long the prompt would be.")
    earlier = (errors.EarlierResponseNotFound,)
    asks = "OpenAIResponseRequest"
    path, counting = openai.ResponsesCodec.path, openai.InputTokensCodec.path
    yield generation(path, "Go on with items, and keep the answer.", asks, told, earlier)
    yield generation(counting, "Count the tokens of such a request.", asks, counted, earlier)


def generation(path: str, words: str, asks: str, told: Answer, more: Errors = ()) -> Operation:
    raises = (*failures.EDGE, *failures.BODY, *failures.RUN, *failures.RESUMED, *more)
    return Operation(
        "POST", path, words, "OpenAI", {200: told}, raises, asks={JSON: refer(asks)},
        parameters=RESUMING, says=_SAYS, counted=True,
    )  # fmt: skip


def _kept() -> Iterator[Operation]:
    path = f"{openai.ResponsesCodec.path}/{{id}}"
    missing = (*failures.EDGE, errors.ResponseNotFound)
    stream = Parameter("stream", "query", TEXT, "Anything but `false` is refused.")
    yield Operation(
        "GET", path, "A kept answer.", "OpenAI", {200: json_of("OpenAIResponse")},
        (*missing, errors.UnsupportedFeature), parameters=(_ID, stream), says=_SAYS,
    )  # fmt: skip
    yield Operation(
        "DELETE", path, "Forget a kept answer.", "OpenAI",
        {200: json_of("OpenAIResponseDeleted")}, missing, parameters=(_ID,), says=_SAYS,
    )  # fmt: skip
    page = (
        Parameter("limit", "query", whole(1, 100)),
        Parameter("order", "query", one_of(("asc", "desc"))),
        Parameter("after", "query", TEXT),
    )
    yield Operation(
        "GET", f"{path}/input_items", "What a kept answer's model was given.", "OpenAI",
        {200: json_of("OpenAIInputItems")}, (*missing, *failures.QUERY), parameters=(_ID, *page),
        says=_SAYS,
    )  # fmt: skip
    yield Operation(
        "POST", f"{path}/cancel", "Refused: nothing runs in the background.", "OpenAI", {},
        (*missing, *failures.QUERY), parameters=(_ID,), says=_SAYS,
    )  # fmt: skip
    yield Operation(
        "POST", f"{openai.ResponsesCodec.path}/compact", "Refused: it is not offered.", "OpenAI",
        {}, (*failures.EDGE, errors.UnsupportedFeature), says=_SAYS,
    )  # fmt: skip


def _models() -> Iterator[Operation]:
    """In OpenAI's form, and in Anthropic's for its clients."""
    for path, name, own, raises in (
        ("/v1/models", "Models", (), failures.QUERY),
        ("/v1/models/{id}", "Model", (_ID,), failures.NAMED),
    ):
        told = either(refer(f"OpenAI{name}"), refer(f"Anthropic{name}"))
        page = () if own else _PAGE
        words = "One model." if own else "List the models that the client may use."
        yield Operation(
            "GET", path, words, "OpenAI",
            {200: Answer("The answer.", {JSON: told})}, (*failures.EDGE, *raises),
            parameters=(*own, *page, _VERSION), says=_BOTH,
        )  # fmt: skip
