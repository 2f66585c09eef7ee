"""Beginnings of prompts on the disk: written behind the engine's back, read when one is asked for.

Whatever a disk does - slow, full, gone, damaged - costs entries, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxd.worker.engine import Kind
from mlxd.worker.prefix.files import Head, name_of
from mlxd.worker.prefix.folder import Folder
from mlxd.worker.prefix.layout import Layout, taken_apart
from mlxd.worker.prefix.reader import DAMAGED, Read, Reader
from mlxd.worker.prefix.spill import Kept, is_worth_it, next_of, worth
from mlxd.worker.prefix.stock import DiskStats, Stock
from mlxd.worker.prefix.writer import Parcel, Writer

LEAST_GAIN = 64
"""Tokens that an entry has more than what is on disk of it already, such as the system's turn that
it begins with; for fewer it is not written.
"""
LOOK_SECONDS = 1.0
"""Between two looks at what memory has that the disk has not."""
_LISTING_SECONDS = 1.0
"""Behind the start; so long requests wait until it is known what is there."""
_MOST_DISTRUSTED = 256


@dataclass(frozen=True, slots=True)
class Restored:
    """A beginning that was on disk, as memory takes it."""

    ids: bytes
    kind: Kind
    owner: str
    public: bool
    kept: bool
    caches: list[Any]


class Disk:
    """The entries of one model, loaded in one way. All calls are the engine thread's, and return at
    once, but for `close`.
    """

    def __init__(
        self,
        folder: Folder,
        layout: Layout,
        *,
        trimmable: bool,
        budget: int | None = None,
        tell: Callable[[str], None] = lambda words: None,
        lacks: Callable[[str], None] = lambda words: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As `Writer`; `trimmable`: a part of an entry serves, too. `tell` is told what else an
        operator should know. `clock` is memory's.
        """
        self._layout = layout
        self._tell = tell
        self._clock = clock
        self._key = folder.key
        self._stock = Stock(folder, trimmable=trimmable)
        self._reader = Reader(self._stock, layout, tell)
        self._writer = Writer(self._stock, budget=budget, lacks=lacks, clock=clock)
        self._looked = -LOOK_SECONDS
        self._until = 0.0
        """When nobody waits any more until all is listed."""
        self._restored: dict[str, None] = {}
        """Names of what has come back, in that order."""

    def start(self) -> None:
        """Its threads; what is there is listed first."""
        self._until = time.monotonic() + _LISTING_SECONDS
        self._reader.start()
        self._writer.start()

    # -- what memory has

    def tend(self, entries: Iterable[Kept], *, idle: bool) -> None:
        """Have what is worth it written, one at a time; now and then. `idle`: the engine has
        nothing to do.
        """
        now = self._clock()
        if self._writer.off or now - self._looked < LOOK_SECONDS:
            return
        entries = list(entries)
        _unstore(entries, self._stock.gone() | self._writer.failed())
        for entry in entries:
            if entry.stored and entry.used >= self._looked:
                self._writer.used(_name(entry))
        self._looked = now
        if not self._writer.held:
            entry_due = next_of(entries, now, idle=idle)
            if entry_due is not None:
                self._store(entry_due)

    def evicted(self, entry: Kept, most: int) -> None:
        """It is about to leave memory for want of room: it stays there until it is written, if no
        more than `most` bytes do.
        """
        if is_worth_it(entry) and not self._writer.off:
            self._store(entry, most)

    def close(self, entries: Iterable[Kept], seconds: float) -> None:
        """Write what is worth it, the best first, for so long at most."""
        until = time.monotonic() + seconds
        if self._writer.off:
            return
        entries = list(entries)
        _unstore(entries, self._writer.failed(at_once=True))
        for entry in sorted(filter(is_worth_it, entries), key=worth, reverse=True):
            if not self._writer.settle(until - time.monotonic()):
                return
            self._store(entry)
        self._writer.settle(until - time.monotonic())

    def _store(self, entry: Kept, most: int | None = None) -> None:
        name = _name(entry)
        entry.stored = True
        if self._stock.has(name):
            self._writer.used(name)
            return
        if entry.length - self._stock.covers(entry.ids, entry.owner) < LEAST_GAIN:
            return
        layers, slabs = taken_apart(entry.caches)
        mx.eval([slab.array for slab in slabs])
        head = Head(self._key, entry.ids, entry.kind, entry.owner, entry.public, entry.kept, layers)
        entry.stored = self._writer.add(Parcel(head, slabs, most is not None), most)

    # -- what requests want

    def find(self, ids: bytes, owner: str, *, beyond: int, most: int) -> str | None:
        """The entry that is worth reading for a prompt of which memory has `beyond` tokens, and
        room for `most` bytes.
        """
        if self._writer.off or self._reader.hangs:
            return None
        self._reader.listed.wait(max(0.0, self._until - time.monotonic()))
        return self._stock.find(ids, owner, beyond, most)

    def read(self, name: str, then: Callable[[Read | None], None]) -> None:
        """`then` is told on another thread. None: it could not be read."""
        self._reader.read(name, then)

    def restored(self, read: Read) -> Restored | None:
        """What was read, as caches; None: they do not hold what it says."""
        head = read.head
        caches = self._layout.made(head.layers, read.arrays, head.length)
        if caches is None:
            self._discard(head.name)
            self._stock.damaged()
            self._tell(DAMAGED)
            return None
        self._restored[head.name] = None
        if len(self._restored) > _MOST_DISTRUSTED:
            del self._restored[next(iter(self._restored))]
        return Restored(head.ids, head.kind, head.owner, head.public, head.kept, caches)

    def distrust(self) -> None:
        """The engine broke: what came from here may be why, and does not come again."""
        for name in self._restored:
            self._discard(name)
        self._restored.clear()

    def _discard(self, name: str) -> None:
        file = self._stock.discard(name)
        if file is not None:
            self._reader.remove(file)

    # -- what the operator wants

    def apply(self, budget: int | None, entries: Iterable[Kept] = ()) -> None:
        """Bytes for the entries of all models; None: by what is free; 0: all that is there goes.
        `entries`: what memory has.
        """
        self._writer.apply(budget)
        if budget == 0:
            for entry in entries:
                entry.stored = False

    def clear(self, entries: Iterable[Kept] = ()) -> None:
        """Remove all that is on disk of this model. `entries` as in `apply`."""
        self._writer.clear()
        for entry in entries:
            entry.stored = False

    @property
    def stats(self) -> DiskStats:
        return self._stock.stats

    @property
    def off(self) -> bool:
        return self._writer.off

    @property
    def held(self) -> int:
        """Bytes of memory that are held until they are written, and no entry's."""
        return self._writer.evicted


def _unstore(entries: Iterable[Kept], names: Collection[str]) -> None:
    """Those of these names are not on disk, though they were taken to be."""
    for entry in entries if names else ():
        if entry.stored and _name(entry) in names:
            entry.stored = False


def _name(entry: Kept) -> str:
    return name_of(entry.ids, entry.owner, public=entry.public)
