"""Reads the small files of a model folder, which may hold anything: pipes, loops of links, lies.

Never more than a bound, only of regular files, and nothing that changes meanwhile. What goes wrong
is said in words for a user, without a path of the host.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import category

MAX_FILE_BYTES = 64 * 2**20
"""Of any file that is read whole."""
_UNSHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode's categories of controls, surrogates (bytes that are no UTF-8) and line breaks."""


class UnreadableModel(Exception):
    """Why a folder cannot be served, in words for a user; no path of the host."""


def readable(text: str) -> str:
    """Text that can be encoded and shown: undecodable bytes and control characters replaced."""
    return "".join("\ufffd" if category(letter) in _UNSHOWN else letter for letter in text)


def in_words(error: OSError) -> str:
    """An OSError without its path."""
    return (error.strerror or "it cannot be read").lower()


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. Raises UnreadableModel for anything else, and for a file that
    is another one by the end of the block.

    A pipe is not waited for, and a device is not touched.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableModel(f"its {path.name} is no file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableModel(f"its {path.name} cannot be read: {_lost(path, error)}") from error
    with os.fdopen(descriptor, "rb") as stream:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise UnreadableModel(f"its {path.name} is no file")
        yield stream, before.st_size
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnreadableModel(f"its {path.name} changes while it is read")


def exists(path: Path) -> bool:
    """Whether there is anything of this name, a link to nowhere included."""
    return os.path.lexists(path)


def text_of(path: Path, most: int = MAX_FILE_BYTES) -> str:
    """The beginning of a file as text, at most `most` bytes of it. Raises UnreadableModel."""
    with opened(path) as (stream, _):
        return stream.read(most).decode("utf-8", "replace")


def json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises UnreadableModel."""
    if not exists(path):
        raise UnreadableModel(f"it has no {path.name}")
    with opened(path) as (stream, size):
        if size > MAX_FILE_BYTES:
            raise UnreadableModel(f"its {path.name} is too large")
        raw = stream.read(MAX_FILE_BYTES)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"its {path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise UnreadableModel(f"its {path.name} is not a JSON object")
    return value


def _lost(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "it is a link that leads nowhere"
    return in_words(error)
