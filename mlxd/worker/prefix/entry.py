"""One beginning that is kept; and the order in which they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mlxd.ipc.messages import TOKEN_BYTES, unpacked
from mlxd.worker.engine import Kind
from mlxd.worker.prefix.snapshot import given

SYSTEM_SECONDS = 3600.0
"""A system's turn that has served is taken for used this much later than it was."""


@dataclass(eq=False, slots=True)
class Entry:
    """What was read, and the caches that it left."""

    ids: bytes
    """Its tokens, packed."""
    caches: list[Any]
    """As the store has them: their full layers may hold more than its tokens; see `copied`."""
    kind: Kind
    owner: str
    public: bool
    """Whether it serves everybody."""
    used: float
    """When it was last of use, by the store's clock."""
    served: bool = False
    """Whether a prompt has begun with it."""
    kept: bool = False
    """Whether the operator wants it kept: it leaves after all others."""
    stored: bool = False
    """Whether it is on disk; the store does not care."""

    @property
    def length(self) -> int:
        return len(self.ids) // TOKEN_BYTES

    @property
    def tokens(self) -> list[int]:
        return unpacked(self.ids)

    def copied(self) -> list[Any]:
        """Caches that hold exactly its tokens, and may be written to."""
        return given(self.caches, self.length)


class Queue:
    """Who leaves first: whoever was of use the longest time ago, and the operator's last."""

    def __init__(self) -> None:
        self._lines: tuple[dict[Entry, None], ...] = ({}, {}, {})
        """Of most entries, of systems' turns that have served, and of those to be kept; the
        longest unused first in each."""
        self._line_of: dict[Entry, int] = {}

    def __len__(self) -> int:
        return len(self._line_of)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._line_of

    def __iter__(self) -> Iterator[Entry]:
        """In about the order in which they would leave."""
        for line in self._lines:
            yield from line

    def last(self, entry: Entry) -> None:
        """It is new, or was just of use."""
        self.leave(entry)
        line = 2 if entry.kept else 1 if entry.kind == "system" and entry.served else 0
        self._lines[line][entry] = None
        self._line_of[entry] = line

    def leave(self, entry: Entry) -> None:
        line = self._line_of.pop(entry, None)
        if line is not None:
            del self._lines[line][entry]

    def again(self, keeps: Callable[[Entry], bool]) -> None:
        """The operator wants others kept."""
        for entry in sorted(self._line_of, key=lambda entry: entry.used):
            entry.kept = keeps(entry)
            self.last(entry)

    def first(self, but: Entry | None = None) -> Entry | None:
        """Who leaves next; to make room for `but` neither that one nor any that is to be kept."""
        usual, system, kept = (_head(line, but) for line in self._lines)
        if usual is None or system is None:
            one = usual or system
            return one if one is not None or but is not None else kept
        return usual if usual.used <= system.used + SYSTEM_SECONDS else system


def _head(line: dict[Entry, None], but: Entry | None) -> Entry | None:
    return next((entry for entry in line if entry is not but), None)
