"""Calls that a disk or a name server may hold up for ever, aside from the event loop.

Unlike an executor's, these threads are not waited for when the process ends, and one that hangs
takes nobody else's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Job = Callable[[], None]

_MOST_IDLE = 2


class NoThread(OSError):
    """The system has no thread for what was to be done, which was not begun."""

    words = "the system has no thread for it"

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, self.words)


class Threads:
    """Threads that are used again; one more is made when all are busy. The caller bounds how many
    calls there are at a time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[SimpleQueue[_Job | None]] = []

    def run(self, work: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> asyncio.Future[T]:
        """Start `work`; the future gets what it returns or raises. Giving up does not stop it.

        Raises NoThread.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        jobs = self._idle.pop() if self._idle else self._made()

        def job() -> None:
            told: _Job
            try:
                told = partial(future.set_result, work(*arguments))
            except StopIteration as error:  # which no future takes
                told = partial(future.set_exception, RuntimeError(repr(error)))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                told = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._done, jobs, future, told)

        jobs.put(job)
        return future

    async def run_or_here(self, work: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        """What `work` returns or raises. Without a thread it holds up the event loop: only for what
        waits for nothing, and must not be lost.
        """
        try:
            done = self.run(work, *arguments)
        except NoThread:
            return work(*arguments)
        return await done

    def _made(self) -> SimpleQueue[_Job | None]:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        try:
            threading.Thread(target=_work, args=(jobs,), name=self._name, daemon=True).start()
        except RuntimeError as error:
            raise NoThread from error
        return jobs

    def _done(self, jobs: SimpleQueue[_Job | None], future: asyncio.Future[T], told: _Job) -> None:
        """On the loop: the thread is free for whoever is told now."""
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(jobs)
        else:
            jobs.put(None)
        if not future.done():
            told()


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # or what it has made would live until the next one
