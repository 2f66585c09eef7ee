"""Cases out of cases: bytes that are changed, and JSON that stays JSON while it is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

LONGEST = 64 * 1024
"""Bytes of a case that is changed further."""
_ODD_NUMBERS = (
    b"0", b"-1", b"1", b"2147483648", b"-2147483649", b"4294967296", b"9007199254740993",
    b"18446744073709551616", b"1e999", b"-1e999", b"1e-999", b"NaN", b"-0", b"1.5", b"9" * 400,
)  # fmt: skip
_ODD_BYTES = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xa8", b"\r\n", b"\n", b"\"", b"\\",
    b"[" * 200, b"]" * 200, b"{" * 60, b'{"a":' * 100, b" " * 300, b"<", b"&", b"%00", b"../",
    b"\xef\xbb\xbf", b"\xc2\x85", b"'", b":", b",", b"#", b"- ", b"!!", b"*a", b"&a ", b"|\n",
)  # fmt: skip
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**60, 0.5, -0.0,
    1e308, "", "\0", "a" * 300, "x" * 5000, "\ud800", "..", "/etc/passwd", [], {}, [[]], [None],
    {"": None}, {"type": "object"}, ["a", 1, None],
)  # fmt: skip


class Mutator:
    """Changes cases at random, but the same ones for the same seed."""

    def __init__(self, seed: int, words: Sequence[bytes] = ()) -> None:
        self._random = random.Random(seed)
        self._words = [*words, *_ODD_BYTES, *_ODD_NUMBERS]
        self._texts = [word.decode("utf-8", "replace") for word in words]

    def changed(self, pool: Sequence[bytes]) -> bytes:
        """A new case out of one or two of `pool`."""
        case = self._random.choice(pool)
        for _ in range(1 << self._random.randrange(4)):
            case = self._once(case, pool)
        return case[:LONGEST]

    def _once(self, case: bytes, pool: Sequence[bytes]) -> bytes:
        if self._random.random() < 0.5 and (found := self._json_changed(case, pool)) is not None:
            return found
        change: Callable[[bytes, Sequence[bytes]], bytes] = self._random.choice(
            (self._flipped, self._without, self._doubled, self._with_word, self._spliced,
             self._cut, self._repeated)
        )  # fmt: skip
        return change(case, pool)

    def _at(self, case: bytes) -> int:
        return self._random.randrange(len(case) + 1)

    def _range(self, case: bytes) -> tuple[int, int]:
        begin = self._at(case)
        return begin, min(len(case), begin + 1 + int(self._random.expovariate(0.1)))

    def _flipped(self, case: bytes, _: Sequence[bytes]) -> bytes:
        begin = self._at(case)
        return case[:begin] + bytes([self._random.randrange(256)]) + case[begin + 1 :]

    def _without(self, case: bytes, _: Sequence[bytes]) -> bytes:
        begin, end = self._range(case)
        return case[:begin] + case[end:]

    def _doubled(self, case: bytes, _: Sequence[bytes]) -> bytes:
        begin, end = self._range(case)
        return case[:end] + case[begin:end] + case[end:]

    def _repeated(self, case: bytes, _: Sequence[bytes]) -> bytes:
        begin, end = self._range(case)
        times = self._random.choice((3, 30, 300, 3000))
        return case[:begin] + case[begin:end] * times + case[end:]

    def _with_word(self, case: bytes, _: Sequence[bytes]) -> bytes:
        begin, end = self._range(case)
        kept = end if self._random.random() < 0.5 else begin
        return case[:begin] + self._random.choice(self._words) + case[kept:]

    def _spliced(self, case: bytes, pool: Sequence[bytes]) -> bytes:
        other = self._random.choice(pool)
        return case[: self._at(case)] + other[self._at(other) :]

    def _cut(self, case: bytes, _: Sequence[bytes]) -> bytes:
        return case[: self._at(case)]

    def _json_changed(self, case: bytes, pool: Sequence[bytes]) -> bytes | None:
        """None where it is no JSON, or has nothing inside."""
        value = _json_of(case)
        holders = [*_holders(value)]
        if not holders:
            return None
        holder = self._random.choice(holders)
        self._change(holder, self._inside(pool))
        try:
            return json.dumps(value).encode()
        except (ValueError, RecursionError):
            return None

    def _change(self, holder: Any, foreign: Any) -> None:
        """Put something else in, take something out, or do both to a dict or a list."""
        keys: list[Any] = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
        new = self._random.choice((*_ODD_VALUES, foreign, *self._texts[:200]))
        action = self._random.randrange(5)
        if keys and action == 0:
            del holder[self._random.choice(keys)]
        elif keys and action == 1:
            key = self._random.choice(keys)
            holder[key] = [holder[key]] if self._random.random() < 0.5 else {"a": holder[key]}
        elif keys and action < 4:
            holder[self._random.choice(keys)] = new
        elif isinstance(holder, list):
            holder.insert(self._at(bytes(len(holder))), new)
        else:
            holder[self._random.choice([*self._texts, "a", "", "\0"])] = new

    def _inside(self, pool: Sequence[bytes]) -> Any:
        """A part of another case."""
        holders = [*_holders(_json_of(self._random.choice(pool)))]
        return self._random.choice(holders) if holders else None


def _json_of(case: bytes) -> Any:
    try:
        return json.loads(case)
    except (ValueError, RecursionError):
        return None


def _holders(value: Any) -> list[Any]:
    """The dicts and lists in a value, itself included."""
    found: list[Any] = []
    open_ = [value]
    while open_ and len(found) < 500:
        node = open_.pop()
        if isinstance(node, dict | list):
            found.append(node)
            open_ += node.values() if isinstance(node, dict) else node
    return found
