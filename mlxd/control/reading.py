"""Reads the small files of a model folder, which may hold anything: pipes, loops of links, lies.

Never more than a bound, only of regular files, and nothing that changes meanwhile. What goes wrong
is said in words for a user, without a path of the host.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from unicodedata import category

import msgspec

MAX_FILE_BYTES = 2**20
"""Of a file that is read whole, and of JSON that is built whole: no thread runs meanwhile."""
_MOST_MEMBERS = 10_000
_UNSHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode's categories of controls, surrogates (bytes that are no UTF-8) and line breaks."""


class UnreadableModel(Exception):
    """Why a folder cannot be served, in words for a user; no path of the host."""


class NotJson(UnreadableModel):
    """A file can be read, and what it says cannot."""


class OutOfFiles(OSError):
    """This process, or the machine, can open nothing more: it says nothing of what was to be read,
    and what is known of that stays true.
    """


_POINTER = b"version https://git-lfs.github.com/spec/"
_RUN_OUT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def raise_if_out(error: OSError) -> None:
    """Raises OutOfFiles where that is what happened."""
    if error.errno in _RUN_OUT:
        raise OutOfFiles(error.errno, error.strerror) from error


def readable(text: str) -> str:
    """Text that can be encoded and shown: undecodable bytes and control characters replaced."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if category(letter) in _UNSHOWN else letter for letter in text)


def in_words(error: OSError) -> str:
    """An OSError without its path."""
    return (error.strerror or "it cannot be read").lower()


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. Raises UnreadableModel for anything else, and for a file that
    is another one by the end of the block; NotJson for what Git LFS has in place of a file that was
    not fetched; OutOfFiles.

    A pipe is not waited for, and a device is not touched.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableModel(f"its {path.name} is no file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise_if_out(error)
        raise UnreadableModel(f"its {path.name} cannot be read: {_lost(path, error)}") from error
    with os.fdopen(descriptor, "rb") as stream:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise UnreadableModel(f"its {path.name} is no file")
        if os.pread(descriptor, len(_POINTER), 0) == _POINTER:
            raise NotJson(
                f"its {path.name} is a pointer of Git LFS: `git lfs pull` fetches the file"
            )
        yield stream, before.st_size
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnreadableModel(f"its {path.name} changes while it is read")


def exists(path: Path) -> bool:
    """Whether there is anything of this name, a link to nowhere included."""
    return os.path.lexists(path)


def is_missing(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path leads to nothing of a kind, as `stat.S_ISDIR` tells it. Not where a folder on
    the way keeps that to itself.
    """
    try:
        return not kind(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def text_of(path: Path, most: int = 0) -> str:
    """A file as text, or at most `most` bytes of its beginning. Raises UnreadableModel."""
    if not most:
        return bytes_of(path).decode("utf-8", "replace")
    with opened(path) as (stream, _):
        return stream.read(most).decode("utf-8", "replace")


def bytes_of(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """A whole file. Raises UnreadableModel, for one with more than `most` bytes too."""
    with opened(path) as (stream, size):
        if size > most:
            raise UnreadableModel(f"its {path.name} is too large")
        return stream.read(most)


def json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises UnreadableModel."""
    if not exists(path):
        raise UnreadableModel(f"it has no {path.name}")
    return _object(bytes_of(path), path.name)


def json_members(path: Path, names: Collection[str], most: int) -> dict[str, Any]:
    """Of a JSON object that may be large, at least the members of these names, none of them large.

    Raises UnreadableModel.
    """
    raw = bytes_of(path, most)
    if len(raw) <= MAX_FILE_BYTES:
        return _object(raw, path.name)
    try:
        found = {name: value for name, value in members(raw, _MOST_MEMBERS) if name in names}
        if any(len(value) > MAX_FILE_BYTES for value in found.values()):
            raise UnreadableModel(f"its {path.name} is too large")
        return {name: json.loads(value) for name, value in found.items()}
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"its {path.name} is not JSON") from error


class TooManyError(msgspec.ValidationError):
    """There are more members than asked for."""


class _Name:
    """Of a member; unlike a string it equals no other one, so that each is kept."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def members(raw: bytes, most: int) -> list[tuple[str, bytes]]:
    """The names of a JSON object's members, which may be twice the same, and their values as they
    are written. Other threads run meanwhile, whatever the values hold.

    Raises TooManyError for more than `most` of them, ValidationError for other JSON; DecodeError,
    UnicodeDecodeError and RecursionError for none.
    """
    count = 0

    def named(_: type, text: str) -> _Name:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError("too many")
        return _Name(text)

    try:
        found = msgspec.json.decode(raw, type=dict[_Name, msgspec.Raw], dec_hook=named)
    except msgspec.ValidationError as error:
        if count > most:
            raise TooManyError(str(error)) from error
        raise
    return [(name.text, bytes(value)) for name, value in found.items()]


def _object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        raise NotJson(f"its {name} is not JSON") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"its {name} is not JSON") from error
    if not isinstance(value, dict):
        raise UnreadableModel(f"its {name} is not a JSON object")
    return value


def _lost(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "it is a link that leads nowhere"
    return in_words(error)
