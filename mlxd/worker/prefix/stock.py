"""What is on disk of one model, and what became of it: for several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mlxd.worker.prefix.files import Head
from mlxd.worker.prefix.folder import Folder, named
from mlxd.worker.prefix.shelf import Shelf, Shelved

WORTH_TOKENS = 256
"""An entry that has so many tokens more than memory is worth a read."""
WORTH_SHARE = 4
"""And the prompt shares a quarter of it at least: it is read whole."""


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Of one model, since its worker started."""

    entries: int = 0
    """On disk now."""
    nbytes: int = 0
    """And what they take there."""
    written: int = 0
    restored: int = 0
    damaged: int = 0
    """They were not what had been written, and were removed."""
    lost: int = 0
    """They could not be written, or not be read."""


class Stock:
    """The shelf and the figures, under one lock; the files of what goes from it go, too."""

    def __init__(self, folder: Folder, *, trimmable: bool) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._shelf = Shelf(trimmable=trimmable)
        self._stats = DiskStats()
        self._gone: set[str] = set()
        """Names of entries whose files others have removed, or that had to make room."""
        folder.on_removed = self._removed

    @property
    def stats(self) -> DiskStats:
        with self._lock:
            return replace(self._stats, entries=len(self._shelf), nbytes=self._shelf.nbytes)

    def has(self, name: str) -> bool:
        with self._lock:
            return name in self._shelf

    def get(self, name: str) -> Shelved | None:
        with self._lock:
            return self._shelf.get(name)

    def covers(self, ids: bytes, owner: str) -> int:
        """How many of these tokens need not be written for their owner."""
        with self._lock:
            found = self._shelf.find(ids, owner)
        return found[1] if found is not None else 0

    def find(self, ids: bytes, owner: str, beyond: int, most: int) -> str | None:
        """The entry that is worth reading for a prompt of which memory has `beyond` tokens, and
        room for `most` bytes.
        """
        with self._lock:
            found = self._shelf.find(ids, owner)
            if found is None:
                return None
            name, length = found
            entry = self._shelf.get(name)
        if entry is None or entry.nbytes > most or length * WORTH_SHARE < entry.length:
            return None
        return name if length >= beyond + WORTH_TOKENS else None

    def touch(self, names: Iterable[str]) -> None:
        """They were of use."""
        for name in names:
            entry = self.get(name)
            if entry is not None and not self.folder.touch(entry.file):
                self._removed(entry.file)

    def gone(self) -> set[str]:
        """Names of those that are on disk no more, since this was asked last."""
        with self._lock:
            gone, self._gone = self._gone, set()
        return gone

    def _removed(self, file: Path) -> None:
        """Of whatever key."""
        name = named(file)
        with self._lock:
            entry = self._shelf.get(name)
            if entry is not None and entry.file == file:
                self._shelf.remove(name)
                self._gone.add(name)

    def add(self, head: Head, file: Path, nbytes: int) -> None:
        """It was there, or is there now."""
        entry = Shelved(file, head.ids, head.kind, head.owner, head.public, head.kept, nbytes)
        with self._lock:
            before = self._shelf.get(head.name)
            self._shelf.add(head.name, entry)
        if before is not None and before.file != file:
            self.folder.remove(before.file)

    def written(self, head: Head, file: Path, nbytes: int) -> None:
        """As `add`; what it makes needless goes."""
        self.add(head, file, nbytes)
        with self._lock:
            needless = self._shelf.beginnings_of(head.ids, head.owner)
            gone = [entry for name in needless if (entry := self._shelf.remove(name)) is not None]
            self._stats = replace(self._stats, written=self._stats.written + 1)
        for entry in gone:
            self.folder.remove(entry.file)

    def restored(self) -> None:
        with self._lock:
            self._stats = replace(self._stats, restored=self._stats.restored + 1)

    def lost(self) -> None:
        with self._lock:
            self._stats = replace(self._stats, lost=self._stats.lost + 1)

    def damaged(self) -> None:
        with self._lock:
            self._stats = replace(self._stats, damaged=self._stats.damaged + 1)

    def discard(self, name: str) -> Path | None:
        """It is not to be found any more; returns where its file is."""
        with self._lock:
            entry = self._shelf.remove(name)
        return entry.file if entry is not None else None

    def forget(self) -> None:
        """Nothing is to be found any more; the files are not touched."""
        with self._lock:
            self._shelf.clear()
