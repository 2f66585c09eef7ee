"""Writes entries to the disk on a thread of its own: nobody waits for it, but the end a little.

What cannot be written is lost, whatever the reason; what memory has of it may be tried again.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxd.worker.prefix import files
from mlxd.worker.prefix.files import Head
from mlxd.worker.prefix.folder import ranked
from mlxd.worker.prefix.layout import Slab
from mlxd.worker.prefix.spill import Wear
from mlxd.worker.prefix.stock import Stock
from mlxd.worker.threads import run_forever

MOST_WAITING = 512 * 2**20
"""Bytes of what was evicted from memory and waits here: it is in memory still."""
AGAIN_SECONDS = 300.0
"""Until what a disk did not take is tried again: to have it ready is some work for the engine."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One entry as it is to be written. Its arrays are evaluated, and nobody writes to them."""

    head: Head
    slabs: Sequence[Slab]
    evicted: bool = False
    """Whether nothing else holds them."""

    @property
    def nbytes(self) -> int:
        return sum(slab.array.nbytes for slab in self.slabs)


class Writer:
    """Parcels wait here for their turn, few enough to be held in memory."""

    def __init__(
        self,
        stock: Stock,
        *,
        budget: int | None,
        lacks: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """`budget`: bytes of the entries of all models; None: by what is free; 0: there is nothing
        to be on the disk. `lacks` is told what the disk does not take, and with empty words that
        it does again.
        """
        self._stock = stock
        self._lacks = lacks
        self._changed = threading.Condition()
        """Guards what follows."""
        self._budget = budget
        self._clearing = budget == 0
        self._tidying = True
        """Dead writers' files, old ones and those beyond the budget are to go."""
        self._parcels: deque[Parcel] = deque()
        self._writing: Parcel | None = None
        self._used: set[str] = set()
        self._failed: dict[str, float] = {}
        """When what the disk did not take, and memory has, may be tried again."""
        self._clock = clock
        self._wear = Wear(clock)
        self._trouble = ""
        """That was told last."""

    def start(self) -> None:
        run_forever("prefixes out", self.turn)

    @property
    def off(self) -> bool:
        return self._budget == 0

    @property
    def held(self) -> int:
        """Bytes of memory that are held until they are written."""
        with self._changed:
            return self._held()

    @property
    def evicted(self) -> int:
        """Of those, what nothing else holds."""
        with self._changed:
            under_way = [self._writing] if self._writing is not None else []
            return sum(one.nbytes for one in (*under_way, *self._parcels) if one.evicted)

    def add(self, parcel: Parcel, most: int | None = None) -> bool:
        """Write it in its turn; False: too much waits already. `most`: bytes that may wait with it;
        None: where nothing does, one may be of any size.
        """
        with self._changed:
            held = self._held()
            fits = held + parcel.nbytes <= (MOST_WAITING if most is None else most)
            if self.off or not (fits or (most is None and not held)):
                return False
            self._parcels.append(parcel)
            self._changed.notify_all()
            return True

    def used(self, name: str) -> None:
        """What is in memory, too, was of use there."""
        with self._changed:
            self._used.add(name)
            self._changed.notify_all()

    def failed(self, *, at_once: bool = False) -> set[str]:
        """Names of what the disk did not take and is due again, or may be `at_once`; told once."""
        with self._changed:
            now = self._clock()
            due = {name for name, at in self._failed.items() if at_once or at <= now}
            self._failed = {name: at for name, at in self._failed.items() if name not in due}
        return due

    def apply(self, budget: int | None) -> None:
        with self._changed:
            self._tidying = self._tidying or budget != self._budget
            self._budget = budget
            self._changed.notify_all()
        if budget == 0:
            self.clear()

    def clear(self) -> None:
        """Remove all that is on disk of this model."""
        with self._changed:
            self._parcels.clear()
            self._stock.forget()
            self._clearing = True
            self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until nothing waits, for so long at most."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held() and not self._clearing, seconds)

    def turn(self) -> None:
        """Wait for something to do, and do that."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._parcels or self._used or self._clearing or self._tidying
            )
            task = self._clear if self._clearing else self._taken_up()
        task()

    def _clear(self) -> None:
        """Before anything else is taken up: that came behind the wish. Another may come meanwhile,
        and behind it what was here to be written is not.
        """
        self._stock.forget()
        self._stock.folder.clear()
        if self.off:
            self._be_in("")
        with self._changed:
            self._clearing = False
            self._changed.notify_all()

    def _taken_up(self) -> Callable[[], None]:
        """Under the lock: what there is to do now."""
        used, budget = self._used, self._budget
        tidying, self._tidying = self._tidying and budget != 0, False
        self._used = set()
        parcel = self._writing = self._parcels.popleft() if self._parcels else None

        def task() -> None:
            self._stock.touch(used)
            if parcel is not None:
                self._write(parcel, budget)
            if tidying:
                self._stock.folder.tidy(budget)
            with self._changed:
                self._writing = None
                self._changed.notify_all()

        return task

    def _held(self) -> int:
        """Under the lock."""
        under_way = self._writing.nbytes if self._writing is not None else 0
        return under_way + sum(parcel.nbytes for parcel in self._parcels)

    def _write(self, parcel: Parcel, budget: int | None) -> None:
        try:
            self._put(parcel, budget)
        except OSError as error:
            self._stock.lost()
            self._note_failed(parcel)
            why = os.strerror(error.errno) if error.errno else "it does not answer"
            self._be_in(f"prefixes cannot be kept on disk: {why}")
        except (MemoryError, RuntimeError):  # the latter is how MLX says it
            self._stock.lost()

    def _put(self, parcel: Parcel, budget: int | None) -> None:
        """Raises OSError, MemoryError, RuntimeError."""
        head = parcel.head
        size = files.size_of(head)
        if not self._wear.allows(size):
            self._stock.lost()
            return
        name = ranked(head.name, system=head.kind == "system", kept=head.kept)
        try:
            file = self._stock.folder.put(
                name, size, budget, lambda stream: files.write(stream, head, parcel.slabs)
            )
        except OSError:
            self._wear.give_back(size)
            raise
        self._stock.written(head, file, size)
        self._be_in("")

    def _note_failed(self, parcel: Parcel) -> None:
        if not parcel.evicted:
            with self._changed:
                self._failed[parcel.head.name] = self._clock() + AGAIN_SECONDS

    def _be_in(self, trouble: str) -> None:
        """Told when that is other than before."""
        if trouble != self._trouble:
            self._trouble = trouble
            self._lacks(trouble)
