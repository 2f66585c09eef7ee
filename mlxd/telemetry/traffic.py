"""The lines of the traffic log: when each generation came, for whom, of which model, its sizes and
times, and what came of it. Never what it says. docs/reference/traffic.md lists every field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from mlxd.core.story import Story

SCHEMA = "mlxd-traffic/v1"
FILE = "traffic.jsonl"
LEFT = 499
"""The status of a request whose client left before its end."""

_DIGITS = 6
"""Of a second: to the microsecond."""


class Known(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a model that was in memory."""

    bytes: int = 0
    """That its engine held once it was loaded."""
    seconds: float = 0.0
    """That its last load took."""
    loaded: bool = False
    """Whether it is in memory now."""


class Opening(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="file"):
    """The first line of a file, and of each daemon that goes on with it."""

    schema: str
    mlxd: str
    """The version."""
    at: float
    memory: int
    """Bytes of memory that there are; 0: it cannot be read."""
    salt: str
    """Which salt the hashes are of: equal hashes mean the same under the same salt only."""
    models: dict[str, Known]
    """By their names, those that this daemon has loaded so far."""


class Loaded(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="load"
):
    """A model is in memory."""

    at: float
    model: str
    bytes: int = 0
    seconds: float = 0.0


class Evicted(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="evict"
):
    """A model has left memory."""

    at: float
    model: str
    reason: str = ""


class Missing(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="lost"):
    """Lines that could not be written, before this one."""

    at: float
    count: int


class Request(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="request"
):
    """One request. What was not said, or did not come to be, is left out."""

    at: float
    """When it came, in seconds since the epoch."""
    repeats: int = 0
    """So many requests, all alike, which came from `at` to `last`; 0: it is one."""
    last: float = 0.0
    """When the last of them came, in seconds since the epoch."""
    tenant: str = ""
    """Its tenant; none: anonymous."""
    key: str = ""
    """The id of its API key, which is no secret."""
    owner: bool = False
    """Whether it was the owner's own, without a key: no tenant's limits held it."""
    address: str = ""
    """A hash of the client's address."""
    user: str = ""
    """A hash of whom the client says it asks for."""
    headers: dict[str, str] = {}
    """Hashes of the headers that a rate rule counts by, by the headers' names."""
    model: str = ""
    """The model's own name."""
    want: str = ""
    """answer, embedding or prompt (counted and told, not generated)."""
    stream: bool = False
    """Whether the answer was streamed."""
    wished: str = ""
    """The class that it asked for; none: it named none."""
    klass: str = msgspec.field(default="medium", name="class")
    """The class that it waited and ran in."""
    choices: int = 1
    """Generations of the call, which share one slot."""
    cost: float = 0.0
    """Tokens that were expected of prompts and answers together."""
    max_tokens: int | None = None
    """The most tokens of an answer, by the client's word."""
    keep_alive: float | None = None
    """Seconds that it wanted its model kept in memory; -1: for ever."""
    rated: bool = True
    """Whether it counts towards rates."""
    prompt: int = 0
    """Tokens of its prompts."""
    cached: int = 0
    """Of these, those that were not computed again."""
    completion: int = 0
    """Tokens of its answers."""
    status: int = 0
    """Of the answer; 499: the client left before its end."""
    code: str = ""
    """Of the error that it ended with."""
    judged: float | None = None
    """Seconds from its arrival to its being asked whether it may run; none: it never was."""
    waited: float | None = None
    """Seconds from there to its slot; none: it got none."""
    load: float = 0.0
    """Seconds from its slot to having its model in memory, where that had to be loaded."""
    ttft: float | None = None
    """Seconds from its arrival to its first token."""
    prefill: float = 0.0
    """Seconds of reading its prompt."""
    decode: float = 0.0
    """Seconds of its answer behind the first token."""
    held: float = 0.0
    """Seconds that it held its slot."""
    lasted: float = 0.0
    """Seconds from its arrival to its end."""
    replays: int = 0
    """Workers that it lost."""
    generation: int = 0
    """Of the policies that it was served under."""

    @property
    def left(self) -> bool:
        """Its client hung up."""
        return self.status == LEFT

    @property
    def asked(self) -> float:
        """When it was judged, in seconds since the epoch."""
        return self.at + (self.judged or 0.0)


Line: TypeAlias = Opening | Loaded | Evicted | Missing | Request

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    return _encoder.encode(line) + b"\n"


def decode(line: bytes) -> Line:
    """Raises ValueError. Fields that this version does not know are left out."""
    return _decoder.decode(line)


GENERATIONS = ("answer", "embedding", "prompt")
"""What is wanted by requests that are written; loading a model and the like is none of them."""


def request_of(story: Story) -> Request:
    """What the log keeps of an ended one. Its identities are not hashed yet."""
    caller, admitted, leased = story.caller, story.admitted, story.leased
    lasted = story.ended if story.ended is not None else story.now
    released = story.released if story.released is not None else lasted
    return Request(
        at=round(story.wall, _DIGITS),
        tenant=caller.tenant,
        key=caller.key,
        owner=caller.owner,
        address=caller.address,
        user=story.user,
        headers=dict(caller.headers),
        model=story.model,
        want=story.want,
        stream=story.stream,
        wished=story.wished or "",
        klass=story.priority,
        choices=story.requests,
        cost=story.cost,
        max_tokens=story.max_tokens,
        keep_alive=story.keep_alive,
        rated=story.rated,
        prompt=story.prompt_tokens,
        cached=story.cached_tokens,
        completion=story.completion_tokens,
        status=story.status,
        code=story.code,
        judged=_rounded(story.judged),
        waited=_between(story.judged or 0.0, admitted),
        load=_between(admitted or 0.0, leased) or 0.0 if story.loaded else 0.0,
        ttft=_rounded(story.first_token),
        prefill=round(story.prefill_seconds, _DIGITS) or 0.0,
        decode=round(story.decode_seconds, _DIGITS) or 0.0,
        held=_between(admitted or 0.0, released) or 0.0 if admitted is not None else 0.0,
        lasted=round(lasted, _DIGITS),
        replays=story.replays,
        generation=story.generation,
    )


def repeats_of(story: Story, count: int, first: float, last: float) -> Request:
    """What the log keeps of so many that were told what this one was told, as soon as they came."""
    return msgspec.structs.replace(
        request_of(story),
        at=round(first, _DIGITS),
        repeats=count,
        last=round(last, _DIGITS),
        judged=0.0,
        lasted=0.0,
    )


Kind = Literal["address", "user", "header"]


def hashed(text: str, kind: Kind, salt: bytes) -> str:
    """The same for the same text, and nothing that can be read back without the salt."""
    if not text:
        return ""
    raw = text.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(raw, digest_size=8, key=salt, person=kind.encode())
    return digest.hexdigest()


def sealed(line: Line, salt: bytes) -> Line:
    """The line as it may be written: who asked is a hash."""
    if not isinstance(line, Request):
        return line
    return msgspec.structs.replace(
        line,
        address=hashed(line.address, "address", salt),
        user=hashed(line.user, "user", salt),
        headers=_hashed_headers(line.headers, salt),
    )


def _hashed_headers(headers: Mapping[str, str], salt: bytes) -> dict[str, str]:
    return {name: hashed(value, "header", salt) for name, value in headers.items()}


def _between(start: float, end: float | None) -> float | None:
    return _rounded(max(0.0, end - start)) if end is not None else None


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, _DIGITS) if seconds is not None else None
