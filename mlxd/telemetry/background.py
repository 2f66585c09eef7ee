"""A thread that writes what it is given, so that nobody waits for a disk."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

_LAST_SECONDS = 1.0
"""For what is waiting at the end; a disk may hang."""


class Background(Generic[T]):
    """Hands each thing that is put to `write`, in order."""

    def __init__(self, name: str, write: Callable[[T], None], end: Callable[[], None]) -> None:
        """Both are called in the thread, and raise nothing; `end` is the last."""
        self._write = write
        self._end = end
        self._name = name
        self._waiting: SimpleQueue[T | _End] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.begun()

    def begun(self) -> bool:
        """Whether there is a thread: where the system had none, it is asked again."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread
        return self._thread is not None

    def waiting(self) -> int:
        """How many are not written yet."""
        return self._waiting.qsize()

    @property
    def over(self) -> bool:
        """All is written that ever will be."""
        return self._thread is None or not self._thread.is_alive()

    def put(self, one: T) -> None:
        """Never waits; how many may wait is for who puts to say."""
        self._waiting.put(one)

    def finish(self) -> None:
        """Write what is waiting, and nothing more; waits for nothing."""
        self._waiting.put(_End())

    def close(self, seconds: float = _LAST_SECONDS) -> None:
        """As `finish`, and wait for that, not for ever."""
        self.finish()
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while not isinstance(one := self._waiting.get(), _End):
            self._write(one)
        self._end()


class _End:
    """Nothing comes behind it."""
