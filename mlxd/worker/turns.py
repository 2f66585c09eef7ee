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
    While nobody waits a turn is kept from one step to the next, and what a step began goes on.
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
        self._held = False
        self.exclusive = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn of this process, and hold it for the length of the block; beyond that
        until somebody waits at the end of another, or `end`. Where the file cannot be had, nothing
        is waited for: a disk that fails ends no stream.
        """
        files = self._files() if self.exclusive else None
        if files is None:
            self.end()
            yield
            return
        self._take(*files)
        try:
            yield
        except BaseException:
            self._let_go()
            raise
        if _is_locked(files[1]):
            self.end()

    def end(self) -> None:
        """There is no step for now: others may take theirs, once what the last one began is
        done.
        """
        if self._held:
            try:
                self._finish()
            finally:
                self._let_go()

    def _take(self, turn: int, next_one: int) -> None:
        """Wait until the turn is this process's, or locks cannot be had."""
        if self._held:
            return
        self._standing(True)
        with contextlib.suppress(OSError):
            fcntl.flock(next_one, fcntl.LOCK_EX)
            fcntl.flock(turn, fcntl.LOCK_EX)
        self._held = True
        _unlock(next_one)
        self._standing(False)

    def _let_go(self) -> None:
        if self._held and self._open is not None:
            self._held = False
            _unlock(self._open[0])

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


def _unlock(file: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


def _opened(file: Path) -> int:
    """Raises OSError."""
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_locked(descriptor: int) -> bool:
    """By another process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # locks cannot be had: nobody waits by them
        return False
    _unlock(descriptor)
    return False
