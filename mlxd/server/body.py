"""A request's bytes -> its JSON object, with every bound checked before the parser runs.

What a parser would have to recurse into or allocate for is counted first, by passes that run at
the speed of memory and need no more than a copy of the body. Then one strict parser decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import msgspec

from mlxd.core.errors import InvalidRequest, PolicyLine
from mlxd.dialects.numbers import levels_of, shorten_integers

Json = dict[str, Any]

_BOM = b"\xef\xbb\xbf"
_INT64_DIGITS = b"0" * 19
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_BLANKS = b" \t\r\n"
# Read as signed: an opening bracket is a step down, a closing one a step up.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """server.http.json: what is refused before it is parsed."""

    max_depth: int = 64
    max_nodes: int = 150_000
    """Values and keys together."""
    max_string: int = 4 * 2**20
    """Bytes of one string as written, escapes included."""
    max_int_digits: int = 100


@dataclass(slots=True)
class _Bounds:
    """The limits, and who can say where each was set."""

    limits: JsonLimits
    line_of: Callable[[str], PolicyLine] | None

    def check(self, limit: str, found: int, what: str) -> None:
        allowed = getattr(self.limits, limit)
        if found > allowed:
            policy = self.line_of(limit) if self.line_of else None
            raise InvalidRequest(f"{what}; at most {allowed} are read", policy=policy)


def parse_json(
    body: bytes,
    limits: JsonLimits,
    line_of: Callable[[str], PolicyLine] | None = None,
) -> Json:
    """The JSON object that `body` is. Raises InvalidRequest.

    `line_of` names the policy line behind a limit, given its field's name in JsonLimits.
    """
    body = body.removeprefix(_BOM)
    if not body or body.isspace():
        raise InvalidRequest("missing request body")
    keys, long_numbers = _survey(body, _Bounds(limits, line_of))
    value = _parse(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object")
    if keys != len(value) and keys != _count_keys(value):
        raise InvalidRequest("the request body has an object with the same key twice")
    if long_numbers:
        shorten_integers(value)
    return value


def _survey(body: bytes, bounds: _Bounds) -> tuple[int, bool]:
    """Check the bounds; return how many keys are written and whether a long number may be.

    Right up to the first mistake in the body, which the parser then finds.
    """
    if b"\\" in body:
        body = body.replace(rb"\\", b"__").replace(rb"\"", b"__")
    parts = body.split(b'"', 2 * bounds.limits.max_nodes + 2)
    bounds.check("max_nodes", len(parts) // 2, "too many strings in the request body")
    longest = max(map(len, parts[1::2]), default=0)
    bounds.check("max_string", longest, f"a string of {longest} bytes in the request body")
    bare = b"".join(parts[::2]).translate(_DIGITS, _BLANKS)
    del parts
    keys = bare.count(b":")
    opened = bare.count(b"[") + bare.count(b"{")
    nodes = bare.count(b",") + opened + keys + 1
    bounds.check("max_nodes", nodes, "too many values in the request body")
    _check_depth(bare, opened, bounds)
    return keys, _check_numbers(bare, bounds)


def _check_depth(bare: bytes, opened: int, bounds: _Bounds) -> None:
    if opened <= bounds.limits.max_depth:
        return
    steps = memoryview(bare.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    bounds.check("max_depth", max(accumulate(steps)), "too many levels in the request body")


def _check_numbers(bare: bytes, bounds: _Bounds) -> bool:
    """Whether a number may be longer than 64 bits."""
    if _INT64_DIGITS not in bare:
        return False
    most = bounds.limits.max_int_digits
    if b"0" * (most + 1) in bare:
        bounds.check("max_int_digits", most + 1, "too many digits in a number of the request body")
    return True


def _parse(body: bytes) -> Any:
    try:
        return _decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the request body is not UTF-8: {error.reason}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error


def _count_keys(value: Json) -> int:
    holders = (holder for level in levels_of(value) for holder in level)
    return sum(len(holder) for holder in holders if type(holder) is dict)
