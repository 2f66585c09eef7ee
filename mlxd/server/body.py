"""A request's bytes -> its JSON object, with every bound checked before the parser runs.

What a parser would have to recurse into or allocate for is counted first, by passes that run at
the speed of memory and copy a small part of the body at a time. Then one strict parser decides.
"""

from __future__ import annotations

import codecs
import re
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
"""As many as an integer of more than 64 bits has at least."""
_WINDOW = 2**16
"""Bytes of a body that are counted at a time."""
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
    survey = _Survey(_Bounds(limits, line_of))
    survey.run(body)
    value = _parse(body)
    if not isinstance(value, dict):
        raise InvalidRequest("the request body must be a JSON object")
    if survey.keys != len(value) and survey.keys != _count_keys(value):
        raise InvalidRequest("the request body has an object with the same key twice")
    if survey.long_numbers:
        shorten_integers(value)
    return value


class _Survey:
    """What a body holds, counted a window at a time: no copy is larger than that.

    Right up to the first mistake in the body, which the parser then finds.
    """

    def __init__(self, bounds: _Bounds) -> None:
        self._bounds = bounds
        self._quotes = 0
        self._string = self._longest = 0
        """Bytes: of the string in which the window before ended, and of the longest so far."""
        self._nodes = 1
        self._depth = 0
        self._digits = b""
        """That what stands outside strings ended with so far, as many as matter, behind what tells
        an integer from a fraction or an exponent.
        """
        self.keys = 0
        self.long_numbers = False
        """There may be a number longer than 64 bits."""

    def run(self, body: bytes) -> None:
        """Raises InvalidRequest."""
        carried = b""
        for at in range(0, len(body), _WINDOW):
            window = carried + body[at : at + _WINDOW]
            if b"\\" in window:
                window = window.replace(rb"\\", b"__").replace(rb"\"", b"__")
            # A backslash that is left there belongs to what comes next.
            carried = b"\\" if window.endswith(b"\\") else b""
            self._look_at(window[: len(window) - len(carried)])
        found = f"a string of {self._longest} bytes in the request body"
        self._bounds.check("max_string", self._longest, found)

    def _look_at(self, window: bytes) -> None:
        """`window`: without escapes."""
        parts = window.split(b'"', 2 * self._bounds.limits.max_nodes + 2)
        inside = self._quotes % 2
        self._quotes += len(parts) - 1
        strings = (self._quotes + 1) // 2
        self._bounds.check("max_nodes", strings, "too many strings in the request body")
        self._measure(parts[1 - inside :: 2], begun=inside == 1)
        bare = b"".join(parts[inside::2])
        del parts, window
        self._count(bare.translate(_DIGITS, _BLANKS))

    def _measure(self, strings: list[bytes], *, begun: bool) -> None:
        """`begun`: the first of them goes on with one of the window before."""
        if not strings:
            return
        lengths = [*map(len, strings)]
        if begun:
            lengths[0] += self._string
        self._longest = max([self._longest, *lengths])
        self._string = lengths[-1] if self._quotes % 2 else 0

    def _count(self, bare: bytes) -> None:
        keys = bare.count(b":")
        opened = bare.count(b"[") + bare.count(b"{")
        self.keys += keys
        self._nodes += bare.count(b",") + opened + keys
        self._bounds.check("max_nodes", self._nodes, "too many values in the request body")
        self._check_depth(bare, opened)
        self._check_numbers(self._digits + bare)

    def _check_depth(self, bare: bytes, opened: int) -> None:
        if self._depth + opened > self._bounds.limits.max_depth:
            steps = memoryview(bare.translate(_STEPS, _NOT_BRACKETS)).cast("b")
            deepest = max(accumulate(steps, initial=self._depth))
            self._bounds.check("max_depth", deepest, "too many levels in the request body")
        self._depth += opened - bare.count(b"]") - bare.count(b"}")

    def _check_numbers(self, bare: bytes) -> None:
        most = self._bounds.limits.max_int_digits
        longest = max(most, len(_INT64_DIGITS))
        found = most < longest and _has_integer(bare, most + 1)
        if _INT64_DIGITS in bare:
            self.long_numbers = True
            found = found or b"0" * (longest + 1) in bare
        if found:
            words = "too many digits in a number of the request body"
            self._bounds.check("max_int_digits", most + 1, words)
        before = bare.rstrip(b"0")
        self._digits = before[-2:] + b"0" * min(len(bare) - len(before), longest)


def _has_integer(bare: bytes, digits: int) -> bool:
    """One of at least so many, neither a fraction nor an exponent; each digit is written 0."""
    unsigned = bare.translate(None, b"+-")
    return re.search(rb"(?<![.eE0])0{%d}" % digits, unsigned) is not None


def _parse(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if reason := _not_utf8(body):
            raise InvalidRequest(f"the request body is not UTF-8: {reason}") from error
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error


def _not_utf8(body: bytes) -> str | None:
    """Why, in a codec's words: what the parser raises then differs by its version."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(body), _WINDOW):
            decoder.decode(body[at : at + _WINDOW], final=at + _WINDOW >= len(body))
    except UnicodeDecodeError as error:
        return error.reason
    return None


def _count_keys(value: Json) -> int:
    holders = (holder for level in levels_of(value) for holder in level)
    return sum(len(holder) for holder in holders if type(holder) is dict)
