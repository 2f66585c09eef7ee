"""What lies in the state folder and is not for this mlxd: set aside, told, and never fatal.

Each file of the state folder says which version of its format it is of. One of another version
becomes NAME.set-aside-vN; the mlxd that writes version N takes it back at its start, so that an
upgrade finds what was known before a downgrade. What is cut off, damaged or no file becomes
NAME.set-aside-1, -2 and so on, for people to look at.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mlxd.core import durable

log = logging.getLogger(__name__)
T = TypeVar("T")

KEPT = 5
"""Of one name, of those that cannot be read; then the oldest goes. One tells what happened, the
others that it happens again."""
_SHOWN = 10
_MARK = ".set-aside-"
_LIES_ASIDE = re.compile(rf"(.+){re.escape(_MARK)}(v?)([0-9]{{1,9}})")
_FOR_GOOD = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO})
"""Reasons that something cannot be looked at which do not pass, and lie in it."""
STRANGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What decoding something strange raises."""


class OtherVersion(ValueError):
    """The file is of another version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"it is of version {version} of its format")
        self.version = version


def check_version(said: object, version: int) -> None:
    """Raises OtherVersion, or ValueError for what is no version at all."""
    if type(said) is not int or not 0 <= said < 10**9:
        raise ValueError("it does not say its version")
    if said != version:
        raise OtherVersion(said)


def read(file: Path, version: int, decode: Callable[[bytes], T], *, most: int) -> T | None:
    """What the file holds; None: there is none, or none that this version can read.

    `decode` raises OtherVersion, or one of STRANGE. `most`: bytes.
    """
    for _ in ("what is there", "what is taken back"):
        _take_back(file, version)
        try:
            return decode(durable.read(file, most))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # even one that passes: what is written next must not replace it
            done = set_aside(file, f"it cannot be read: {error.strerror}")
        except OtherVersion as error:
            done = set_aside(file, str(error), error.version)
        except STRANGE as error:
            done = set_aside(file, str(error) if type(error) is ValueError else "it is damaged")
        if not done:
            return None
    return None


def names(folder: Path, suffix: str, version: int) -> set[str]:
    """Of the files in `folder` that end so, those that `read` can take back included."""
    taken_back = f"{_MARK}v{version}"
    try:
        found = {entry.name.removesuffix(taken_back) for entry in folder.iterdir()}
    except OSError:
        return set()
    return {name for name in found if name.endswith(suffix) and not name.startswith(".")}


def clear_for_file(path: Path) -> None:
    """Have nothing there but a file, if anything: what cannot be written to is set aside."""
    if not _fits(path, stat.S_ISREG):
        set_aside(path, "it is no file")


def clear_for_folder(path: Path) -> None:
    """Have nothing there but a folder, if anything. A link is left: its disk may come later."""
    if not _fits(path, stat.S_ISDIR):
        set_aside(path, "it is no folder")


def set_aside(path: Path, why: str, version: int | None = None) -> bool:
    """Rename it; whether that could be done. Both are logged."""
    try:
        to = _free(path) if version is None else path.with_name(f"{path.name}{_MARK}v{version}")
        path.rename(to)
    except OSError as error:
        log.warning("%s cannot be set aside (%s): %s", path.name, why, error.strerror)
        return False
    log.warning("%s is set aside as %s: %s", path.name, to.name, why)
    return True


def told(folders: Iterable[Path]) -> list[str]:
    """What lies aside in these folders, for people; not of more than a few."""
    found = sorted(path for folder in folders for path in _entries(folder))
    words = [_words(path) for path in found[:_SHOWN]]
    more = len(found) - len(words)
    return [*words, f"{more} more lie aside in the state folder"] if more else words


def _fits(path: Path, is_one: Callable[[int], bool]) -> bool:
    """Also where nothing is, or a link to nothing."""
    try:
        return is_one(path.stat().st_mode)
    except OSError as error:
        return error.errno not in _FOR_GOOD


def _words(path: Path) -> str:
    match = _LIES_ASIDE.fullmatch(path.name)
    assert match is not None
    name, of_version, number = match.groups()
    if of_version:
        return f"{name} was set aside: the mlxd of its format's version {number} takes {path} back"
    return f"{name} was set aside, since it could not be read: see {path}, and remove it"


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from (one for one in folder.iterdir() if _LIES_ASIDE.fullmatch(one.name))
    except OSError:
        return


def _take_back(file: Path, version: int) -> None:
    """What was set aside by another version, where nothing has taken its place."""
    lies = file.with_name(f"{file.name}{_MARK}v{version}")
    if os.path.lexists(file) or not os.path.lexists(lies):
        return
    try:
        lies.rename(file)
    except OSError as error:
        log.warning("%s cannot be taken back: %s", lies.name, error.strerror)
    else:
        log.info("%s is taken back from %s", file.name, lies.name)


def _free(path: Path) -> Path:
    """A name for what cannot be read; the oldest such file goes, a folder never. Raises OSError."""
    places = [path.with_name(f"{path.name}{_MARK}{number}") for number in range(1, KEPT + 1)]
    for place in places:
        if not os.path.lexists(place):
            return place
    files = [place for place in places if place.is_symlink() or not place.is_dir()]
    if not files:
        raise OSError(errno.EEXIST, "too many folders lie aside")
    oldest = min(files, key=lambda place: place.lstat().st_ctime)
    oldest.unlink()
    return oldest
