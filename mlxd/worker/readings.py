"""Who is to be read outside the batch: one at a time, in the order in which they came."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mlxd.core.clock import stamp
from mlxd.ipc.messages import Piece
from mlxd.worker.job import Job
from mlxd.worker.reading import Work


class Reads(Protocol):
    """What reads a prompt, chunk by chunk."""

    def read(self, job: Job) -> Work: ...


class Readings:
    """The queue of them. Only its head asks for memory, so that the others hold none."""

    def __init__(self, reader: Reads) -> None:
        self._reader = reader
        self._queue: deque[Job] = deque()
        self._head: Job | None = None
        self._work: Work | None = None
        self.since = 0.0
        """When the first chunk of the present one was begun; 0: it has not been."""

    def __len__(self) -> int:
        return len(self._queue) + (self._head is not None)

    @property
    def current(self) -> Job | None:
        """The one that is being read."""
        return self._head if self._work is not None else None

    def add(self, job: Job) -> None:
        self._queue.append(job)

    def call(self) -> Job | None:
        """The next one, which is to ask for memory; None while another is before it."""
        if self._head is not None or not self._queue:
            return None
        self._head = self._queue.popleft()
        return self._head

    def begin(self) -> None:
        """There is memory for the head."""
        assert self._head is not None
        self._work = self._reader.read(self._head)
        self.since = 0.0

    def step(self) -> list[Piece] | None:
        """Read one chunk; what there is to say behind the last one. Raises Refusal."""
        assert self._work is not None
        self.since = self.since or stamp()
        return next(self._work)

    def leave(self, id: int) -> bool:
        """Whether it was here; it no longer is."""
        if self._head is not None and self._head.id == id:
            self._head = self._work = None
            return True
        before = len(self._queue)
        self._queue = deque(job for job in self._queue if job.id != id)
        return len(self._queue) < before
