"""Reads entries from the disk, on a thread of its own: nothing is believed that is not checked."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import mlx.core as mx

from mlxd.worker.prefix import files
from mlxd.worker.prefix.files import Damaged, Head
from mlxd.worker.prefix.layout import Layout
from mlxd.worker.prefix.stock import Stock
from mlxd.worker.threads import run_forever

DAMAGED = "a prefix kept on disk was damaged and is removed; it is computed again"
LONGEST_SECONDS = 5.0
"""A disk that takes longer for one thing hangs: nobody should wait behind that."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """An entry as it was written."""

    head: Head
    arrays: list[mx.array]


class Reader:
    """First lists what is there, then reads what it is asked for, in order."""

    def __init__(self, stock: Stock, layout: Layout, tell: Callable[[str], None]) -> None:
        """`tell` is told what an operator should know."""
        self._stock = stock
        self._layout = layout
        self._tell = tell
        self.listed = threading.Event()
        """What was there at the start is known."""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._since: float | None = None
        """When it began what it does now."""

    def start(self) -> None:
        self._jobs.put(self._list)
        run_forever("prefixes in", self._turn)

    def read(self, name: str, then: Callable[[Read | None], None]) -> None:
        """`then` is told on another thread. None: it could not be read."""
        self._jobs.put(lambda: then(self._read(name)))

    def remove(self, file: Path) -> None:
        """In its turn."""
        self._jobs.put(lambda: self._stock.folder.remove(file))

    @property
    def hangs(self) -> bool:
        since = self._since
        return since is not None and time.monotonic() - since > LONGEST_SECONDS

    def _turn(self) -> None:
        job = self._jobs.get()
        self._since = time.monotonic()
        job()
        self._since = None

    def _list(self) -> None:
        """By their heads; the arrays are read when they are wanted."""
        for found in self._stock.folder.entries():
            head = self._checked(found.file, self._head)
            if head is not None:
                self._stock.add(head, found.file, found.size)
        self.listed.set()

    def _read(self, name: str) -> Read | None:
        entry = self._stock.get(name)
        if entry is None:
            return None
        read = self._checked(entry.file, self._whole)
        if read is None or read.head.ids != entry.ids:
            self._stock.discard(name)
            return None
        self._stock.touch([name])
        self._stock.restored()
        return read

    def _head(self, stream: BinaryIO) -> Head:
        """Raises OSError, Damaged."""
        head = files.read_head(stream)
        if head.key != self._stock.folder.key or not self._layout.fits(head.layers):
            raise Damaged("it is not for this model")
        return head

    def _whole(self, stream: BinaryIO) -> Read:
        """Raises OSError, Damaged, MemoryError."""
        head = self._head(stream)
        return Read(head, files.read_arrays(stream, head))

    def _checked(self, file: Path, read: Callable[[BinaryIO], T]) -> T | None:
        """What is damaged goes; what cannot be read just now stays where it is."""
        try:
            with files.opened(file) as stream:
                return read(stream)
        except Damaged:
            self._stock.folder.remove(file)
            self._stock.damaged()
            self._tell(DAMAGED)
        except (OSError, MemoryError, RuntimeError):  # the latter is how MLX says the second
            self._stock.lost()
        return None
