"""The models that were pulled, in `<state>/models/`: the only folders that mlxd removes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from mlxd.core import aside, durable
from mlxd.core.manifest import PARTIAL

log = logging.getLogger(__name__)

_GOING = ".going"
MOST_PARTIAL = 8
"""Models that are fetched in part, and by nobody now; each may be as large as a whole one."""
PARTIAL_SECONDS = 14 * 86_400.0
"""Since one of them last grew: who wanted it has been back from a holiday."""


class PulledModels:
    """Blocks: call what reads or writes in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, path: str) -> bool:
        """Whether a model's folder is one of them."""
        return Path(path).is_relative_to(os.path.realpath(self.folder))

    def spelled(self, repo: str) -> str:
        """As it is written on the disk: names differ by more than case."""
        with contextlib.suppress(OSError):
            for organisation in self.folder.iterdir():
                for model in organisation.iterdir() if organisation.is_dir() else ():
                    found = f"{organisation.name}/{model.name}"
                    if not found.startswith(".") and found.lower() == repo.lower():
                        return found
        return repo

    def remove(self, path: str) -> None:
        """It is gone at once, as a whole; its bytes follow. Raises OSError."""
        model = Path(path)
        going = self.folder / _GOING
        going.mkdir(mode=0o700, exist_ok=True)
        grave = going / f"{model.parent.name}--{model.name}"
        durable.remove_tree(grave)
        model.rename(grave)
        with contextlib.suppress(OSError):  # others of the same organisation are left
            model.parent.rmdir()
        self._bury()

    def tidy(self, pulling: Collection[str]) -> None:
        """Remove what is going, after a daemon that was killed while it did; and what nobody goes
        on with. `pulling`: repositories that are being pulled, in lower case.
        """
        aside.clear_for_folder(self.folder)
        self._bury()
        parts = [one for one in self._parts() if _repo(one).lower() not in pulling]
        latest = _now(self.folder / PARTIAL) - PARTIAL_SECONDS
        for number, part in enumerate(sorted(parts, key=_grown, reverse=True)):
            if number >= MOST_PARTIAL or _grown(part) < latest:
                _remove_part(part)

    def _bury(self) -> None:
        durable.remove_tree(self.folder / _GOING)

    def _parts(self) -> Iterator[Path]:
        """The folders of models that were fetched in part."""
        with contextlib.suppress(OSError):
            for organisation in (self.folder / PARTIAL).iterdir():
                yield from (one for one in organisation.iterdir() if one.is_dir())


def _repo(part: Path) -> str:
    return f"{part.parent.name}/{part.name}"


def _now(folder: Path) -> float:
    """As the file system there tells the time; 0 where it does not."""
    try:
        os.utime(folder)
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _grown(part: Path) -> float:
    """When something was last added to it, in seconds since the epoch; 0 if that is not known."""
    with contextlib.suppress(OSError):
        places = (part, part / "blobs", *(part / "blobs").iterdir())
        return max(place.stat().st_mtime for place in places)
    return 0.0


def _remove_part(part: Path) -> None:
    """Unless a process holds it (hub/place.py)."""
    try:
        lock = os.open(part / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(part, ignore_errors=True)
        log.info("what was fetched of %s is removed: nobody went on with it", _repo(part))
        part.parent.rmdir()
    except OSError:
        pass
    finally:
        os.close(lock)
