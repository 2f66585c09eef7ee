"""Where log lines go: a descriptor that may be full, closed, or read by nobody.

None of that may stop the daemon or hold it up: a line that cannot be written at once is counted
and forgotten.
"""

from __future__ import annotations

import logging
import os
import select

from mlxd.core.counts import plural


class Sink(logging.Handler):
    """Writes each record as one line, if it can be done without waiting."""

    def __init__(self, descriptor: int) -> None:
        """-1: there is none."""
        super().__init__()
        self._descriptor = descriptor
        self._torn = False
        """The last line was not written to its end."""
        self._untold = 0
        self.lost = 0
        """Lines that nobody will read."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - the edge: a bad log call is no reason to fail
            line = f"a log line that cannot be written: {record.msg!r}"
        if self._untold and self._wrote(f"{self.lost_line(record, self._untold)}\n"):
            self._untold = 0
        if not self._wrote(f"{line}\n"):
            self._untold += 1
            self.lost += 1

    def lost_line(self, record: logging.LogRecord, count: int) -> str:
        """Says before `record` that so many lines are missing."""
        lines = plural(count, "log line was", "log lines were")
        told = logging.makeLogRecord(record.__dict__)
        told.levelno, told.levelname = logging.WARNING, "WARNING"
        told.msg, told.args, told.exc_info = "%s lost", (lines,), None
        return self.format(told)

    def _wrote(self, line: str) -> bool:
        data = line.encode("utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        left = memoryview(data)
        try:
            while left and self._ready():  # takes so much then: 4096 bytes on Linux, 512 on macOS
                left = left[os.write(self._descriptor, left[: select.PIPE_BUF]) :]
        except OSError:
            pass
        if len(left) < len(data):
            self._torn = bool(left)
        return not left

    def _ready(self) -> bool:
        """Whether it takes a piece now; a file always does."""
        return self._descriptor >= 0 and bool(select.select([], [self._descriptor], [], 0)[1])


def hold_standard_streams() -> None:
    """Have something behind 0, 1 and 2: what is opened later must not get one of their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
