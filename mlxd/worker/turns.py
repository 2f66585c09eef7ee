"""One engine steps at a time, over all processes that lock one file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """A lock that is passed on. The system frees it when its holder dies.

    Two files: whoever holds the second is the next to get the first. So an engine that has just
    stepped queues behind one that waits, instead of taking the lock again before that wakes.
    A holder that is stopped, not dead, holds the others up until the daemon misses its steps; they
    are not missed themselves meanwhile (intake.py).
    """

    def __init__(
        self,
        file: Path | None,
        finish: Callable[[], None] = lambda: None,
        standing: Callable[[bool], None] = lambda stands: None,
    ) -> None:
        """`finish` waits until what a step began is done; `standing` is told when this process
        begins and ceases to wait for its turn. Without a file it is never exclusive.
        """
        self._file = file
        self._finish = finish
        self._standing = standing
        self._open: tuple[int, int] | None = None
        self.exclusive = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn of this process, and hold it for the length of the block. Where the
        file cannot be had, nothing is waited for: a disk that fails ends no stream.
        """
        files = self._files() if self.exclusive else None
        if files is None:
            yield
            return
        turn, next_one = files
        self._standing(True)
        fcntl.flock(next_one, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(next_one, fcntl.LOCK_UN)
        self._standing(False)
        try:
            yield
            self._finish()
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _files(self) -> tuple[int, int] | None:
        """Both, once they could be opened."""
        if self._open is None and self._file is not None:
            with contextlib.ExitStack() as back, contextlib.suppress(OSError):
                turn = _opened(self._file)
                back.callback(os.close, turn)
                next_one = _opened(self._file.with_name(f"{self._file.name}.next"))
                back.pop_all()
                self._open = turn, next_one
        return self._open


def _opened(file: Path) -> int:
    """Raises OSError."""
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
