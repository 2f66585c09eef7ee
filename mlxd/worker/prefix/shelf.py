"""Which beginnings are on disk, found by their tokens: knows no disk, and no MLX."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxd.core.beginnings import common
from mlxd.ipc.messages import TOKEN_BYTES
from mlxd.worker.engine import Kind

BLOCK = 256
"""Tokens between two marks."""
_MARK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Shelved:
    """One entry on disk, without its arrays."""

    file: Path
    ids: bytes
    kind: Kind
    owner: str
    public: bool
    """Whether it serves everybody."""
    kept: bool
    nbytes: int

    @property
    def length(self) -> int:
        return len(self.ids) // TOKEN_BYTES


class Shelf:
    """Entries by marks: digests of their first 256 tokens, 512 tokens, ..., and of all of them.

    Not for several threads at once.
    """

    def __init__(self, *, trimmable: bool) -> None:
        """`trimmable`: a part of an entry serves, too."""
        self._trimmable = trimmable
        self._entries: dict[str, Shelved] = {}
        self._by_mark: defaultdict[bytes, dict[str, Shelved]] = defaultdict(dict)
        self._lengths: defaultdict[int, int] = defaultdict(int)
        """How many entries have each length."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> Shelved | None:
        return self._entries.get(name)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def add(self, name: str, entry: Shelved) -> None:
        self.remove(name)
        self._entries[name] = entry
        self._lengths[entry.length] += 1
        for mark in self._marks_of(entry):
            self._by_mark[mark][name] = entry

    def remove(self, name: str) -> Shelved | None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return None
        self._lengths[entry.length] -= 1
        if not self._lengths[entry.length]:
            del self._lengths[entry.length]
        for mark in self._marks_of(entry):
            del self._by_mark[mark][name]
            if not self._by_mark[mark]:
                del self._by_mark[mark]
        return entry

    def clear(self) -> None:
        self._entries.clear()
        self._by_mark.clear()
        self._lengths.clear()

    def find(self, ids: bytes, owner: str) -> tuple[str, int] | None:
        """The entry that serves most of a prompt, by name, and how many tokens that is: at most all
        but the last.
        """
        best, most = "", 0
        for length, mark in reversed(_marks(ids, self._marked(len(ids) // TOKEN_BYTES))):
            for name, entry in self._by_mark.get(mark, {}).items():
                serves = self._serves(entry, ids, owner)
                if serves > most:
                    best, most = name, serves
            if most >= length:
                break
        return (best, most) if most else None

    def beginnings_of(self, ids: bytes, owner: str) -> list[str]:
        """Entries that are a part of these tokens, and serve nobody whom those would not."""
        if not self._trimmable:
            return []
        return [
            name
            for name, entry in self._entries.items()
            if entry.owner == owner and not entry.public and not entry.kept
            if len(entry.ids) < len(ids) and ids.startswith(entry.ids)
        ]

    def _serves(self, entry: Shelved, ids: bytes, owner: str) -> int:
        if entry.owner != owner and not entry.public:
            return 0
        most = len(ids) // TOKEN_BYTES - 1
        if not self._trimmable:
            return entry.length if entry.length <= most and ids.startswith(entry.ids) else 0
        return min(most, common(entry.ids, ids) // TOKEN_BYTES)

    def _marks_of(self, entry: Shelved) -> list[bytes]:
        lengths = range(BLOCK, entry.length + 1, BLOCK) if self._trimmable else [entry.length]
        return [mark for _, mark in _marks(entry.ids, lengths)]

    def _marked(self, length: int) -> Sequence[int]:
        """Lengths that a prompt of so many tokens may share with an entry, in rising order."""
        if not self._entries:
            return []
        if self._trimmable:
            return range(BLOCK, length + 1, BLOCK)
        return sorted(n for n in self._lengths if n < length)


def _marks(ids: bytes, lengths: Iterable[int]) -> list[tuple[int, bytes]]:
    """A digest of the first tokens, for each number of them; these rise."""
    marks: list[tuple[int, bytes]] = []
    running, read = hashlib.blake2b(digest_size=_MARK_BYTES), 0
    for length in lengths:
        running.update(ids[read : length * TOKEN_BYTES])
        read = length * TOKEN_BYTES
        marks.append((length, running.digest()))
    return marks
