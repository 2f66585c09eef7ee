"""The records of an answer as they were told, kept for whoever comes back to it."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE = 8192
"""Bytes of records that are compressed as one: those of some 30 tokens, which takes 20 us."""
_LEVEL = 1


class Backlog:
    """Bytes that grow, compressed a piece at a time: records are alike but for a word each, and
    take a tenth of what they say.
    """

    __slots__ = ("_fresh", "_pieces", "_unsaid", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._fresh: list[bytes] = []
        """What is no piece yet."""
        self._unsaid = 0
        """Bytes of that."""
        self.size = 0
        """Bytes that the pieces take."""

    def add(self, records: bytes) -> int:
        """By how many bytes `size` has grown with that: most of the time by none."""
        self._fresh.append(records)
        self._unsaid += len(records)
        return self.close() if self._unsaid >= _PIECE else 0

    def close(self) -> int:
        """Nothing follows for now: all of it is in pieces. By how many bytes `size` has grown."""
        if not self._fresh:
            return 0
        piece = zstd.compress(b"".join(self._fresh), _LEVEL)
        self._pieces.append(piece)
        self._fresh, self._unsaid = [], 0
        self.size += len(piece)
        return len(piece)

    def clear(self) -> None:
        self._pieces, self._fresh, self._unsaid, self.size = [], [], 0, 0

    def behind(self, mark: bytes) -> bytes | None:
        """What follows `mark`, which stands in one record; None: there is no such one. From the
        last piece on: who comes back has most of it, and no more is unpacked than is missing.
        """
        found = [b"".join(self._fresh)]
        packed = reversed(self._pieces)
        while (at := found[-1].find(mark)) < 0:
            if (piece := next(packed, None)) is None:
                return None
            found.append(zstd.decompress(piece))
        found[-1] = found[-1][at + len(mark) :]
        return b"".join(reversed(found))

    def __bytes__(self) -> bytes:
        return b"".join((*map(zstd.decompress, self._pieces), *self._fresh))
