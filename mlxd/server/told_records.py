"""The records of an answer as they were told, kept for whoever comes back to it."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE = 8192
"""Bytes of records that are compressed as one: those of some 30 tokens, which takes 20 us."""
_LEVEL = 1


class _Piece(NamedTuple):
    """Whole records."""

    packed: bytes
    last: int
    """The number of its last record."""
    mark: bytes
    """What ids begin with in it."""

    def unpacked(self, mark: bytes) -> bytes:
        """With ids that begin with `mark`."""
        records: bytes = zstd.decompress(self.packed)
        if self.mark != mark:
            records = records.replace(b"\n" + self.mark, b"\n" + mark)
        return records


class Owed:
    """Records that are to be told again, a piece at a time: no more is unpacked than is taken."""

    def __init__(
        self, first: bytes = b"", pieces: Iterable[_Piece] = (), mark: bytes = b""
    ) -> None:
        self._first = first
        self._pieces = deque(pieces)
        self._mark = mark

    def __bool__(self) -> bool:
        return bool(self._first or self._pieces)

    def take(self) -> bytes:
        """The next ones, whole."""
        if self._first:
            first, self._first = self._first, b""
            return first
        return self._pieces.popleft().unpacked(self._mark)


class ToldRecords:
    """Bytes that grow, compressed a piece at a time: records are alike but for a word each, and
    take a tenth of what they say.
    """

    __slots__ = ("_fresh", "_last", "_mark", "_pieces", "_unsaid", "size")

    def __init__(self, mark: bytes = b"") -> None:
        """`mark`: what each record ends with, on a line of its own, but for its number."""
        self._mark = mark
        self._pieces: list[_Piece] = []
        self._fresh: list[bytes] = []
        """What is no piece yet."""
        self._unsaid = 0
        """Bytes of that."""
        self._last = 0
        """The number of the last record."""
        self.size = 0
        """Bytes that the pieces take."""

    def add(self, records: bytes, last: int) -> int:
        """By how many bytes `size` has grown with that: most of the time by none. `last`: the
        number of the last of them.
        """
        self._fresh.append(records)
        self._unsaid += len(records)
        self._last = last
        return self.close() if self._unsaid >= _PIECE else 0

    def close(self) -> int:
        """Nothing follows for now: all of it is in pieces. By how many bytes `size` has grown."""
        if not self._fresh:
            return 0
        piece = zstd.compress(b"".join(self._fresh), _LEVEL)
        self._pieces.append(_Piece(piece, self._last, self._mark))
        self._fresh, self._unsaid = [], 0
        self.size += len(piece)
        return len(piece)

    def clear(self) -> None:
        self._pieces, self._fresh, self._unsaid, self.size = [], [], 0, 0

    def rename(self, mark: bytes) -> None:
        """They have this mark from now on. Between `close` and what follows."""
        self._mark = mark

    def behind(self, number: int) -> Owed | None:
        """What follows the record of that number, 0: all; None: there is no such one. Between
        `close` and what follows.
        """
        if number == 0:
            return Owed(b"", self._pieces, self._mark)
        at = bisect_left(self._pieces, number, key=lambda piece: piece.last)
        if at == len(self._pieces):
            return None
        records = self._pieces[at].unpacked(self._mark)
        _, found, rest = records.partition(b"\n%b%d\n\n" % (self._mark, number))
        return Owed(rest, self._pieces[at + 1 :], self._mark) if found else None
