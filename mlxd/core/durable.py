"""Files that are there after a power cut: whole or not at all."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path


def write(file: Path, content: bytes) -> None:
    """Put `content` in the place of the file. Mode 0600. Raises OSError.

    Returns when the disk has it, and its name.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        descriptor = os.open(temporary, _FLAGS | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            _sync(descriptor)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


def append(file: Path, line: bytes) -> None:
    """Add a line, on its own even where the last one was cut off. Mode 0600. Raises OSError."""
    new = not file.exists()
    descriptor = os.open(file, _FLAGS | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as stream:
        stream.write(line + b"\n" if new else b"\n" + line + b"\n")
        stream.flush()
        _sync(descriptor)
    if new:
        _sync_folder(file.parent)


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_FULL = getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS fsync alone leaves data in the drive's own memory."""


def _sync(descriptor: int) -> None:
    if _FULL is not None:
        try:
            fcntl.fcntl(descriptor, _FULL)
        except OSError:  # a file system that does not know it
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
