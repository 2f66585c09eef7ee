"""An endpoint's wire format: a `Codec` reads bodies and renders answers, an `Encoder` streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from mlxd.core.errors import MlxdError
from mlxd.core.events import Burst, Completion
from mlxd.core.request import GenerationRequest
from mlxd.dialects.fields import Json

Action = Literal["generate", "load", "unload"]
EVENT_STREAM = "text/event-stream"
NDJSON = "application/x-ndjson"

_json = msgspec.json.Encoder()
_LINE_BREAKS = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON, on one line by anyone's count: Python clients that read a stream with
    `str.splitlines` would break a record at these three characters."""
    try:
        encoded = _json.encode(value)
    except UnicodeEncodeError:  # a name of the file system whose bytes are no UTF-8
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        encoded = text.encode("utf-8", "replace")
    if not encoded.isascii():
        for character, escape in _LINE_BREAKS:
            encoded = encoded.replace(character, escape)
    return encoded


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request, and what rendering its answer needs to know."""

    id: str
    """Unique, of [a-z0-9]; the codecs build their own ids from it."""
    received: float
    """Seconds since the epoch."""
    action: Action
    request: GenerationRequest
    """For `load` and `unload` only `model` and `keep_alive` mean something."""
    more: tuple[GenerationRequest, ...] = ()
    """Further generations of the same call, to the same model: its choice 1, 2 and so on."""
    choices: int = 1
    """Answers made of each prompt: those of one prompt stand in a row in `requests`."""
    kept: int = 0
    """How many of those are told, the likeliest; 0: all. OpenAI's best_of."""
    plural: str = "n"
    """The parameter that asked for several answers: a refusal names it."""
    names: dict[str, str] = field(default_factory=dict)
    """Where a parameter has another name than its field of GenerationRequest: that name, by field.
    """
    padded: bool = False
    """OpenAI's stream_options.include_obfuscation: lengths of chunks tell nothing of the text."""
    tells_logprobs: bool = True
    """False where log-probabilities are asked of the worker for the sake of `kept` alone."""
    service_tier: str = ""
    """OpenAI's: the tier that the answer says it was served in; empty: none was asked for."""
    old_functions: bool = False
    """OpenAI's `functions`, the form before `tools`: the answer is in that form, too."""
    category: str = ""
    """mlxd's own: a chain of models.yaml to take the model from, where `request.model` is empty."""
    include_usage: bool = False
    """OpenAI's stream_options.include_usage."""
    dimensions: int | None = None
    """Numbers of each vector that are wanted, the first ones; None: all."""
    base64: bool = False
    """Vectors are wanted as the base64 of their bytes."""
    about: Json = field(default_factory=dict)
    """What else its codec has to know of the request when it answers."""
    request_id: str = ""
    """The HTTP request's, for an API that tells it in the stream's errors."""

    @property
    def requests(self) -> tuple[GenerationRequest, ...]:
        """One for each choice."""
        return (self.request, *self.more)


class Encoder(Protocol):
    """One streamed answer. Stateful: feed it every burst once, in order."""

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        """The records for these events. `now` is in seconds since the epoch. May be empty."""
        ...

    def fail(self, error: MlxdError) -> bytes:
        """The record that says the stream ends here and why; nothing follows it."""
        ...


class Codec(Protocol):
    """One endpoint's wire format."""

    path: str
    content_type: str
    """Of a streamed answer."""
    heartbeat: bytes
    """What may be sent while there is nothing to say; empty where the format allows nothing."""

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        """Raises InvalidRequest (or ModelNotFound for an empty name, where the API says so)."""
        ...

    def encoder(self, call: Call) -> Encoder: ...

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        """The whole answer; one completion for each of the call's requests."""
        ...

    def render_action(self, call: Call, now: float) -> Json:
        """The answer to a `load` or an `unload`."""
        ...

    def render_error(self, error: MlxdError) -> Json: ...


class NeverLoads:
    """Of a codec whose API can ask for neither load nor unload."""

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        raise NotImplementedError

    def render_action(self, call: Call, now: float) -> Json:
        return self.render(call, [Completion()], now)


def sse(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def comment(words: str) -> bytes:
    """What stands in a stream of server-sent events and is none of them. One line, in ASCII."""
    return b": " + words.encode("ascii") + b"\n\n"


def logprob_of(value: float) -> float:
    """A log-probability that JSON can carry: what is impossible is -9999, as OpenAI has it."""
    return value if value > -9999.0 else -9999.0
