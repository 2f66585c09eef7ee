"""Where commands write. Who cannot be written to is told apart from all else that fails."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class Unwritable(Exception):
    """Stdout takes nothing. No OSError: nobody takes it for one of a file or the daemon."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.hung_up = error.errno == errno.EPIPE
        """Whoever read it has gone, and knows: `mlxd events | head`."""


class _Stdout(io.FileIO):
    """A write fails at most once; what comes after that goes nowhere, as when Python ends."""

    _lost = False

    def write(self, data: Any, /) -> int:
        if self._lost:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            self._lost = True
            raise Unwritable(error) from error


class _Nowhere(io.RawIOBase):
    """Takes all, and is no file: who asks for its number learns that there is none."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return memoryview(data).nbytes


def guard() -> None:
    """From now on writing to stdout raises Unwritable where it fails, and what is no text is
    escaped on both streams. A stream that was closed before we began is one that fails, or for
    stderr, one that nobody reads.
    """
    if sys.stdout is None:
        sys.stdout = _wrapped(os.open(os.devnull, os.O_RDONLY), None)
    elif isinstance(sys.stdout, io.TextIOWrapper) and _is_a_file(sys.stdout):
        sys.stdout.flush()
        sys.stdout = _wrapped(sys.stdout.fileno(), sys.stdout)
    if sys.stderr is None:
        os.open(os.devnull, os.O_WRONLY)  # what is opened later must not get its number
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Nowhere()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_a_file(stream: io.TextIOWrapper) -> bool:
    """And not guarded yet, nor what a test reads."""
    return type(getattr(stream.buffer, "raw", stream.buffer)) is io.FileIO


def _wrapped(descriptor: int, like: io.TextIOWrapper | None) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Stdout(descriptor, "w", closefd=False)),
        encoding=like.encoding if like is not None else None,
        line_buffering=like is not None and (like.line_buffering or like.write_through),
    )
