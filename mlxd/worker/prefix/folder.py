"""Where beginnings lie on the disk: a folder for each key, and one budget for all of them.

Workers of several models write there at once. What they share is done under one lock: room is made
and taken in one go, by whoever wants it, and a file that nobody holds any more is a dead writer's.
A lock that cannot be had soon, a full disk and a folder that is gone cost an entry, nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlxd.core import durable
from mlxd.core.clock import SystemClock

ENTRY = ".prefix"
"""What the names of entries end with."""
LEFT_FREE = 2**30
"""Bytes of the disk that are others': no entry is written into them."""
AUTO_SHARE, AUTO_MOST = 10, 32 * 2**30
"""Of what is free, or held by entries: a tenth, and no more than this."""
LONGEST_UNUSED = 7 * 86400.0
"""Seconds; what nobody has asked for in a week is not kept for a later one."""
_LOCK = ".lock"
_LOCK_SECONDS = 5.0
_LOCK_PAUSE = 0.02
_RANKS = ("", ".system", ".kept")
"""What names have before their end: the later, the later it has to make room."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry's file, as the system knows it."""

    file: Path
    size: int
    used: float
    """By the file's own time: when it was last read, or written."""

    @property
    def rank(self) -> int:
        said = Path(self.file.stem).suffix
        return _RANKS.index(said) if said in _RANKS and self.file.suffix == ENTRY else 0


def ranked(name: str, *, system: bool, kept: bool) -> str:
    """A file's name that says how late it has to make room."""
    rank = _RANKS[2 if kept else 1 if system else 0]
    return name.removesuffix(ENTRY) + rank + ENTRY


def named(file: Path) -> str:
    """The entry's name, as `ranked` was given it."""
    return file.name.partition(".")[0] + ENTRY


class Folder:
    """The entries of one key, among those of others."""

    def __init__(self, root: Path, key: str) -> None:
        self.root = root
        self.key = key
        self.path = root / key
        self._clock = SystemClock().wall
        self.on_removed: Callable[[Path], None] = lambda file: None
        """Is told what had to make room."""

    def entries(self) -> list[Found]:
        """Of this key, the most recently used first; nothing where the disk says nothing."""
        found = (entry for entry in _found(self.path) if entry.file.suffix == ENTRY)
        return sorted(found, key=lambda entry: -entry.used)

    def put(
        self, name: str, size: int, budget: int | None, write: Callable[[BinaryIO], object]
    ) -> Path:
        """Make room for `size` bytes, and write them there. None: the budget is `auto`.

        Raises OSError; ENOSPC where there is no room, and none may be made.
        """
        file = self.path / name
        with contextlib.ExitStack() as stack:
            with self._locked():
                self._make_room(size, budget)
                _make_private(self.path)
                stream = stack.enter_context(durable.replacing(file))
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
                os.ftruncate(stream.fileno(), size)  # it counts from now on
            write(stream)
        return file

    def touch(self, file: Path, at: float | None = None) -> bool:
        """It was used now, or `at`; False: there is no such file any more."""
        when = self._clock() if at is None else at
        try:
            os.utime(file, (when, when))
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def remove(self, file: Path) -> None:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all entries of this key."""
        durable.remove_tree(self.path)

    def tidy(self, budget: int | None) -> None:
        """Remove what dead writers have left, what is old, and what is too much, of all keys."""
        with contextlib.suppress(OSError):
            if self.root.exists():
                with self._locked():
                    self._make_room(0, budget)

    # -- under the lock

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Raises OSError where that takes too long."""
        self.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(self.root, linked=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.root / _LOCK, flags, 0o600)
        try:
            until = time.monotonic() + _LOCK_SECONDS
            while not _taken(descriptor):
                if time.monotonic() >= until:
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                time.sleep(_LOCK_PAUSE)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size: int, budget: int | None) -> None:
        """Raises OSError (ENOSPC)."""
        there = list(self._there())
        held = sum(entry.size for entry in there)
        free = shutil.disk_usage(self.root).free
        most = min(AUTO_MOST, (free + held) // AUTO_SHARE) if budget is None else budget
        most = min(most, free + held - LEFT_FREE)
        whole = [entry for entry in there if entry.file.suffix == ENTRY]
        under_way = held - sum(entry.size for entry in whole)
        if size and under_way + size > most:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        oldest = self._clock() - LONGEST_UNUSED
        for entry in sorted(whole, key=lambda entry: (entry.rank, entry.used)):
            if held + size > most or entry.used < oldest:
                self.remove(entry.file)
                self.on_removed(entry.file)
                held -= entry.size
        for folder in _folders(self.root):
            if folder != self.path:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # where it is empty

    def _there(self) -> Iterator[Found]:
        """All files of all keys that somebody may still want; what a dead writer left goes."""
        for folder in _folders(self.root):
            for found in _found(folder):
                if found.file.suffix == ENTRY or _is_held(found.file):
                    yield found
                else:
                    self.remove(found.file)


def _make_private(folder: Path, *, linked: bool = False) -> None:
    """Have it, for its owner alone. `linked`: it may be elsewhere. Raises OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat() if linked else folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(file: Path) -> bool:
    """Whether its writer lives."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)


def _folders(root: Path) -> list[Path]:
    try:
        return [
            Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)
        ]
    except OSError:
        return []


def _found(folder: Path) -> Iterator[Found]:
    """The files of a folder; those that go meanwhile are not there."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield Found(Path(entry.path), status.st_size, status.st_mtime)
