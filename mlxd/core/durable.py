"""Files that are there after a power cut: whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_FULL = getattr(fcntl, "F_FULLFSYNC", None)
"""On macOS fsync alone leaves data in the drive's own memory."""
_TEMPORARY = re.compile(r"\..+\.(?:json|jsonl|pid|yaml)\.[0-9]+(?:-[0-9]+)?")
"""Of the names that files in the state folder have; others' files may lie there, too."""


def write(
    file: Path, content: bytes, *, owner: tuple[int, int] | None = None, mode: int = 0o600
) -> None:
    """Put `content` in the place of the file. `owner` are its user and group, if they are to be
    others than ours; -1 leaves one as it is. Raises OSError.

    Returns when the disk has it, and its name.
    """
    with replacing(file, owner=owner, mode=mode) as stream:
        stream.write(content)


def put(file: Path, content: bytes) -> None:
    """As `write`, in a folder that is made where there is none. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write(file, content)


@contextlib.contextmanager
def replacing(
    file: Path, *, owner: tuple[int, int] | None = None, mode: int = 0o600
) -> Iterator[BufferedWriter]:
    """As `write`, for what the block writes; where that raises, the file stays as it was."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.unlink(missing_ok=True)  # a killed writer's, or laid there for us to follow
        descriptor = os.open(temporary, _FLAGS | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            yield stream
            stream.flush()
            _sync(descriptor)
            temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def append(file: Path, line: bytes) -> None:
    """Add a line, on its own even where the last one was cut off. Mode 0600. Raises OSError."""
    new = not file.exists()
    descriptor = os.open(file, _FLAGS | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as stream:
        stream.write(line + b"\n" if new else b"\n" + line + b"\n")
        stream.flush()
        _sync(descriptor)
    if new:
        sync_folder(file.parent)


def read(file: Path, most: int) -> bytes:
    """All of it. Raises OSError, and ValueError for what is no file or has more bytes than `most`.

    Waits for nobody: a pipe in the file's place may have no writer.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no file")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content


def remove_tree(folder: Path) -> None:
    """As much of it as can be. What is no folder stays: a pipe would be waited for."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(folder.lstat().st_mode):
            shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what writers that were killed have left. The caller is the only one who writes there.

    A kill leaves one such file: without this a series of them would fill the disk.
    """
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file():
                entry.unlink(missing_ok=True)


def _sync(descriptor: int) -> None:
    if _FULL is not None:
        try:
            fcntl.fcntl(descriptor, _FULL)
        except OSError:  # a file system that does not know it
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """The disk has the names in it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
