"""What the process that pulls a model tells the daemon: one JSON object a line, on its stdout.

`Planned` once, `Fetched` as bytes arrive, `Verifying` per file, `Writing`, and one of `Pulled` and
`Failed` as the last. Nothing goes down but the end of its stdin, by which it ends.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Failure = Literal[
    "not_found", "denied", "no_model", "no_space", "corrupt", "unreachable", "refused", "occupied"
]
"""No such repository; the hub wants a token or an agreement; nothing in it that mlxd loads; the
disk; other bytes than the hub promised; no answer; an answer that is no help; in the way."""


class Part(msgspec.Struct, frozen=True):
    """One file of the model."""

    name: str
    size: int
    digest: str
    """As the hub knows it: `sha256:` and 64 hex digits, or for small files git's `sha1:` and 40."""


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """The files that make up the model, and the commit they are of."""

    revision: str
    parts: tuple[Part, ...]


class Fetched(msgspec.Struct, frozen=True, tag="fetched"):
    """How much of one file is here by now, earlier attempts included."""

    digest: str
    bytes: int


class Verifying(msgspec.Struct, frozen=True, tag="verifying"):
    """The file is read again, to see that it is what the hub promised."""

    digest: str


class Writing(msgspec.Struct, frozen=True, tag="writing"):
    """All is here and right: it is put in its place."""


class Pulled(msgspec.Struct, frozen=True, tag="pulled"):
    """The model is in its place."""

    revision: str
    fetched_bytes: int
    """0: it was there already."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It is not; what was fetched is kept for the next attempt, unless it is wrong."""

    kind: Failure
    message: str


Told = Planned | Fetched | Verifying | Writing | Pulled | Failed

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Told] = msgspec.json.Decoder(Told)


class BrokenLine(Exception):
    """The other side does not speak the protocol."""


def encode(told: Told) -> bytes:
    """One line."""
    return _encoder.encode(told) + b"\n"


def decode(line: bytes) -> Told:
    """Raises BrokenLine."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenLine(str(error)) from error
