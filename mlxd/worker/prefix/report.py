"""What is kept of earlier prompts, as the daemon asks about it: numbers, never a token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from mlxd.ipc.messages import CacheStats

WAITING_SHARE = 8
"""Of what may be kept, an eighth is for what has left and waits to be written to the disk."""


class Entry(Protocol):
    """One beginning in memory."""

    @property
    def length(self) -> int:
        """Tokens."""
        ...

    @property
    def used(self) -> float:
        """When it was last used, on the monotonic clock."""
        ...


class Store(Protocol):
    """All of them."""

    @property
    def nbytes(self) -> int: ...

    def shrink(self, nbytes: int) -> None:
        """Keep no more than so many bytes from now on."""
        ...

    def clear(self) -> None:
        """Forget all."""
        ...

    def __iter__(self) -> Iterator[Entry]: ...


class Shelved(Protocol):
    """How many there are on disk."""

    @property
    def entries(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class Disk(Protocol):
    """Those of this model on disk."""

    @property
    def stats(self) -> Shelved: ...

    @property
    def off(self) -> bool: ...

    @property
    def held(self) -> int:
        """Bytes of memory that are held until they are written, and no entry's."""
        ...

    def clear(self) -> None: ...


class Cache:
    """The store and its disk from outside. For the engine's thread, but for `nbytes`."""

    def __init__(
        self,
        store: Store | None = None,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a store nothing is kept."""
        self._store = store
        self._disk = disk
        self._clock = clock
        self._most = 0
        """Bytes that may be kept."""

    @property
    def nbytes(self) -> int:
        """In memory, what has left and waits to be written included."""
        kept = self._store.nbytes if self._store is not None else 0
        return kept + (self._disk.held if self._disk is not None else 0)

    def shrink(self, nbytes: int) -> bool:
        """Keep no more than so many bytes from now on; says whether that was more before."""
        self._most = nbytes
        return self.fit()

    def fit(self) -> bool:
        """The same for as many as before, where it is another question whether a disk is used."""
        before, most = self.nbytes, self._most
        if self._store is not None:
            on_disk = self._disk is not None and not self._disk.off
            self._store.shrink(most - most // WAITING_SHARE if on_disk else most)
        return self.nbytes < before

    def clear(self, *, disk: bool) -> None:
        """Keep nothing of what there is now; nor on disk."""
        if self._store is not None:
            self._store.clear()
        if disk and self._disk is not None:
            self._disk.clear()

    def stats(self, id: int) -> CacheStats:
        """As the answer to that message."""
        entries = list(self._store) if self._store is not None else []
        shelved = self._disk.stats if self._disk is not None else None
        now = self._clock()
        return CacheStats(
            id,
            entries=len(entries),
            bytes=self.nbytes,
            tokens=sum(entry.length for entry in entries),
            oldest_seconds=max((now - entry.used for entry in entries), default=0.0),
            disk_entries=shelved.entries if shelved is not None else 0,
            disk_bytes=shelved.nbytes if shelved is not None else 0,
        )
