"""Ollama's API."""

from __future__ import annotations

from collections.abc import Iterator

from mlxd.core import errors
from mlxd.dialects import ollama
from mlxd.dialects.ollama.create import DIGEST
from mlxd.dialects.shaping import TEXT, refer, text
from mlxd.server.generate import PRIORITY_HEADER
from mlxd.server.openapi import failures
from mlxd.server.openapi.operation import (
    FILE,
    JSON,
    NDJSON,
    Answer,
    Errors,
    Operation,
    Parameter,
    json_of,
    streamed,
)

PRIORITY = Parameter(
    PRIORITY_HEADER, "header", TEXT, "high, medium or low: the class that it waits and runs in."
)
PROGRESS = ("OllamaProgress", "OllamaError")
_NOTHING = Answer("Done. There is no body.")
_DIGEST = Parameter("digest", "path", text(pattern=f"^{DIGEST.pattern}$"))
_NAME = Parameter("name", "path", text(least=1))
_KEY = Parameter("key", "path", text(least=1))


def operations() -> Iterator[Operation]:
    yield from _generating()
    yield from _looking()
    yield from _managing()
    yield from _blobs()
    yield from _accounts()


def _generating() -> Iterator[Operation]:
    for path, name in ((ollama.GenerateCodec.path, "Generate"), (ollama.ChatCodec.path, "Chat")):
        record = f"Ollama{name}Record"
        words = "Records, one a line; one object with `stream` false."
        told = streamed(NDJSON, record, (record, "OllamaStreamError"), words)
        what = f"{'Go on with a conversation' if name == 'Chat' else 'Go on behind a prompt'}."
        yield _asked(path, what, f"Ollama{name}Request", told, failures.RUN)
    for path, name in (
        (ollama.EmbedCodec.path, "Embed"),
        (ollama.EmbeddingsCodec.path, "Embeddings"),
    ):
        told = json_of(f"Ollama{name}Answer", "A vector of each text.")
        yield _asked(path, "Make vectors.", f"Ollama{name}Request", told, failures.RUN)


def _asked(path: str, words: str, asks: str, told: Answer, raises: Errors) -> Operation:
    return Operation(
        "POST", path, words, "Ollama", {200: told}, (*failures.EDGE, *failures.BODY, *raises),
        asks={JSON: refer(asks)}, parameters=(PRIORITY,), counted=True,
    )  # fmt: skip


def _looking() -> Iterator[Operation]:
    for path, name, words in (
        ("/api/tags", "OllamaTags", "List the models that the client may use."),
        ("/api/ps", "OllamaProcesses", "List the models in memory that the client may use."),
        (
            "/api/version",
            "OllamaVersion",
            "The version of Ollama that this speaks like, and mlxd's.",
        ),
        ("/api/status", "Cloud", "Whether there is a cloud: there is none."),
    ):
        yield Operation("GET", path, words, "Ollama", {200: json_of(name)}, failures.EDGE)
    shown = (*failures.EDGE, *failures.NAMED)
    yield Operation(
        "GET", "/api/models/{name}", "One model, in short.", "Ollama", {200: json_of("Model")},
        shown, parameters=(_NAME,),
    )  # fmt: skip
    yield _changed("POST", "/api/show", "One model.", "OllamaShowRequest", json_of("OllamaShown"))


def _changed(
    method: str, path: str, words: str, asks: str, told: Answer, *, raises: Errors = ()
) -> Operation:
    return Operation(
        method, path, words, "Ollama", {200: told},
        (*failures.EDGE, *failures.BODY, *failures.NAMED, *raises), asks={JSON: refer(asks)},
    )  # fmt: skip


def _managing() -> Iterator[Operation]:
    progress = streamed(NDJSON, "OllamaProgress", PROGRESS, "How far it is.")
    pulls = (errors.PullFailed, errors.InsufficientStorage)
    kept, refused = failures.KEPT, (errors.UnsupportedFeature,)
    yield _changed(
        "POST",
        "/api/pull",
        "Fetch a model from a hub.",
        "OllamaPullRequest",
        progress,
        raises=pulls,
    )
    yield _changed(
        "POST", "/api/create", "Make a model of another one, or of files.", "OllamaCreateRequest",
        progress, raises=(*kept, *refused),
    )  # fmt: skip
    yield _changed(
        "POST",
        "/api/copy",
        "Give a model one more name.",
        "OllamaCopyRequest",
        _NOTHING,
        raises=kept,
    )
    yield _changed(
        "DELETE", "/api/delete", "Take a name away, or a pulled model.", "OllamaDeleteRequest",
        _NOTHING, raises=kept,
    )  # fmt: skip
    yield Operation(
        "POST", "/api/push", "Refused: mlxd sends no model to anybody.", "Ollama", {},
        (*failures.EDGE, *failures.BODY, *failures.NAMED, errors.UnsupportedFeature),
        asks={JSON: refer("OllamaPushRequest")},
    )  # fmt: skip


def _blobs() -> Iterator[Operation]:
    path = "/api/blobs/{digest}"
    yield Operation(
        "HEAD", path, "Whether a file is there.", "Ollama",
        {200: Answer("It is."), 404: Answer("It is not.")}, (*failures.EDGE, *failures.QUERY),
        parameters=(_DIGEST,),
    )  # fmt: skip
    yield Operation(
        "POST", path, "Bring a file for /api/create.", "Ollama",
        {200: Answer("It was there."), 201: Answer("It is there now.")},
        (*failures.EDGE, *failures.FILE, errors.InsufficientStorage),
        asks={FILE: {"type": "string", "format": "binary"}}, parameters=(_DIGEST,),
    )  # fmt: skip


def _accounts() -> Iterator[Operation]:
    """Of ollama.com: here are none."""
    told = {401: json_of("NoAccount", "There are no accounts; or an API key is required.")}
    for method, path in (("POST", "/api/me"), ("POST", "/api/signout")):
        yield Operation(method, path, "There are no accounts.", "Ollama", told, failures.EDGE)
    yield Operation(
        "DELETE", "/api/user/keys/{key}", "There are no accounts.", "Ollama", told, failures.EDGE,
        parameters=(_KEY,),
    )  # fmt: skip
