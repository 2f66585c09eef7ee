"""A log file of the daemon's own: written by a thread, and begun anew when it is large enough.

Nobody waits for its disk. What comes while that hangs is counted and forgotten, as soon as too much
is waiting; what a full one does not take goes to stderr.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxd.core.threads import NoThread
from mlxd.telemetry.background import Background
from mlxd.telemetry.sink import Sink

MOST_WAITING = 4000
"""Lines, about a megabyte: more than comes while a busy process does not run the thread."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the log is kept, and how much of it."""

    path: Path
    size: int
    """Bytes of one file."""
    keep: int
    """Finished files: `path` with .1 behind it is the latest."""


class LogFile(logging.Handler):
    """Has each record written as one line."""

    def __init__(self, target: Target, stderr: Sink) -> None:
        """`stderr` gets what the file does not take."""
        super().__init__()
        self.target = target
        self.stderr = stderr
        self.lost = 0
        """Lines that nobody will read."""
        self.failure = ""
        """Why the file is not written now."""
        self._file = RotatedFile(target)
        self._untold = 0
        self._waiting = Background[tuple[str, logging.LogRecord]](
            "log", self._write, self._file.close
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - the edge: a bad log call is no reason to fail
            line = f"a log line that cannot be written: {record.msg!r}"
        if not self._waiting.begun():
            self._failed(NoThread(), record)
            return
        if self._waiting.waiting() >= MOST_WAITING:
            self.lost += 1
            self._untold += 1
            self.failure = f"the log file {self.target.path} takes no more lines: its disk hangs"
            return
        if self._untold:
            lost = self.stderr.lost_line(record, self._untold)
            self._untold = 0
            self._waiting.put((lost, record))
        self._waiting.put((line, record))

    def follow(self, target: Target) -> None:
        """Other bounds for the same file."""
        self.target = target
        self._file.target = target

    def finish(self) -> None:
        """Write what is waiting, and nothing more; waits for nothing."""
        self._waiting.finish()

    def close(self) -> None:
        """At the end of the process."""
        self._waiting.close()
        super().close()

    def _write(self, waiting: tuple[str, logging.LogRecord]) -> None:
        line, record = waiting
        try:
            self._file.write(f"{line}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:
            self._failed(error, record)
        else:
            self.failure = ""

    def _failed(self, error: OSError, record: logging.LogRecord) -> None:
        """Somebody may read stderr."""
        words = f"the log file {self.target.path} cannot be written: {error.strerror or error}"
        if words != self.failure:
            self.failure = words
            told = logging.makeLogRecord(record.__dict__)
            told.levelno, told.levelname = logging.WARNING, "WARNING"
            told.msg, told.args, told.exc_info = words, (), None
            self.stderr.handle(told)
        self.stderr.handle(record)


class RotatedFile:
    """Lines in a file that has at most so many bytes, and those before it."""

    def __init__(self, target: Target, first: Callable[[], bytes] = bytes) -> None:
        """`first`: what is written each time that a file is opened, and where it is empty, before
        anything else.
        """
        self.target = target
        self._first = first
        self._descriptor = -1
        self._torn = False
        """The last line was not written to its end."""

    def write(self, line: bytes) -> None:
        """Raises OSError."""
        self._follow()
        length = self._length()
        if not length:  # somebody has copied it and cut it off
            self._begin()
        elif length + len(line) > self.target.size:
            self._begin_anew()
        self._put(line)

    def _put(self, line: bytes) -> None:
        left = memoryview(b"\n" + line if self._torn else line)
        while left:
            written = os.write(self._descriptor, left)
            left = left[written:]
            self._torn = bool(left)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _follow(self) -> None:
        """Have that file open which has the name: somebody may have moved the one before away."""
        if self._descriptor >= 0:
            try:
                if os.path.samestat(self.target.path.stat(), os.fstat(self._descriptor)):
                    return
            except FileNotFoundError:
                pass
            self.close()
        self._open()

    def _open(self) -> None:
        self.target.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self.target.path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self.close()
            raise OSError("it is no file")
        self._begin()

    def _begin(self) -> None:
        """With `first` on a line of its own: another process may have been cut off in its last one.
        Without it the file is not begun.
        """
        self._torn = False
        if not (first := self._first()):
            return
        self._torn = self._length() > 0
        try:
            self._put(first)
        except OSError:
            self.close()
            raise

    def _length(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _begin_anew(self) -> None:
        """The file becomes .1, .1 becomes .2; those beyond what is kept go."""
        self.close()
        path, keep = self.target.path, self.target.keep
        for number in sorted(_numbers(path), reverse=True):
            if number < keep:
                _numbered(path, number).replace(_numbered(path, number + 1))
            else:
                _numbered(path, number).unlink(missing_ok=True)
        if keep:
            path.replace(_numbered(path, 1))
        else:
            path.unlink(missing_ok=True)
        self._open()


def _numbers(path: Path) -> list[int]:
    """Of the finished files that there are."""
    ends = (entry.name.removeprefix(f"{path.name}.") for entry in path.parent.iterdir())
    return [int(end) for end in ends if re.fullmatch("[1-9][0-9]{0,4}", end)]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
