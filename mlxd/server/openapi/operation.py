"""One method of one path, in our words: what it takes, answers and raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlxd.core.errors import MlxdError
from mlxd.dialects.shaping import Schema, Shapes, either, refer

Tag = Literal["Ollama", "OpenAI", "Anthropic", "mlxd", "admin"]
Errors = Sequence[type[MlxdError]]

JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
PLAIN = "text/plain"
FILE = "application/octet-stream"
STREAMS: Shapes = {EVENTS: refer("ServerSentEvent"), NDJSON: {"type": "string"}}
"""What OpenAPI 3.1 knows of them: a shape of each event, and of lines none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What it says under one status."""

    words: str
    content: Shapes = field(default_factory=dict)
    """By media type; empty: the answer has no body."""
    records: Shapes = field(default_factory=dict)
    """Of the media types that are streams: what each of their records is."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of a path, a query or a header."""

    name: str
    place: Literal["path", "query", "header"]
    shape: Schema
    words: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """`path` has `{name}` where a route takes anything."""

    method: str
    path: str
    words: str
    tag: Tag
    answers: Mapping[int, Answer]
    raises: Errors
    asks: Shapes = field(default_factory=dict)
    """Bodies that it takes, by media type; empty: none."""
    parameters: Sequence[Parameter] = ()
    says: Sequence[str] = ("Ollama",)
    """The APIs in whose words it refuses."""
    open: bool = False
    """Nobody needs an API key."""
    counted: bool = False
    """Its answers and refusals say what limits leave the client."""

    bare: bool = False
    """It may be asked without a body."""

    @property
    def for_owners(self) -> bool:
        """Served on the admin socket, and over TCP to administrators."""
        return self.tag == "admin"


def json_of(name: str, words: str = "The answer.") -> Answer:
    return Answer(words, {JSON: refer(name)})


def plain(words: str) -> Answer:
    return Answer(words, {PLAIN: {"type": "string"}})


def streamed(media_type: str, whole: str, records: Sequence[str], words: str) -> Answer:
    """Whole, or as a stream of such `records`: `stream` of the request says which."""
    record = refer(records[0]) if len(records) == 1 else either(*map(refer, records))
    return Answer(
        words, {JSON: refer(whole), media_type: STREAMS[media_type]}, {media_type: record}
    )
