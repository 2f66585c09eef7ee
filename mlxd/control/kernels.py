"""Kernels that engines compile as they go (MLX on CUDA), handed from one engine to the next.

Each engine has a folder of its own: one that is killed in the middle of writing leaves half a
file to nobody. On an H200 a new engine needs half a minute without them.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlxd.core import aside

VARIABLE = "MLX_PTX_CACHE_DIR"
"""Where MLX looks for them, and puts them (mlx 0.32)."""
MOST_BYTES = 512 * 2**20
"""What is kept in all; one kernel is a few hundred kilobytes."""
_OWN = "kernels"
_WHOLE_SECONDS = 2.0
"""What a killed engine wrote later than this before its end may be half."""


class Kernels:
    """Those of one state folder, and of the installed version of MLX."""

    def __init__(self, folder: Path) -> None:
        self._all = folder
        self._folder = folder / _engine_version()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kernels) and other._folder == self._folder

    def __hash__(self) -> int:
        return hash(self._folder)

    @staticmethod
    def own(private: Path) -> Path:
        """The folder of an engine whose private one this is."""
        return private / _OWN

    def tidy(self) -> None:
        """Remove those of other versions of MLX, of which each may be as much as is kept in all."""
        aside.clear_for_folder(self._all)
        with contextlib.suppress(OSError):
            for entry in self._all.iterdir():
                if entry != self._folder and entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)

    def lend(self, private: Path) -> None:
        """Put all that is kept into an engine's own folder; on a full disk it has to do without."""
        with contextlib.suppress(OSError, shutil.Error):
            if self._folder.is_dir():
                shutil.copytree(self._folder, self.own(private), dirs_exist_ok=True)

    def keep(self, private: Path, *, ended_well: bool) -> None:
        """Take over what an engine has compiled, once its process is gone."""
        with contextlib.suppress(OSError):
            latest = math.inf if ended_well else _now(private) - _WHOLE_SECONDS
            left = MOST_BYTES - sum(file.stat().st_size for file in _files(self._folder))
            for file in _whole(private / _OWN, latest):
                kept = self._folder / file.relative_to(private / _OWN)
                left -= 0 if kept.exists() else file.stat().st_size
                if left < 0:
                    return
                if not kept.exists():
                    _move(file, kept)


def _now(folder: Path) -> float:
    """As the file system there tells the time."""
    mark = folder / ".now"
    mark.touch()
    return mark.stat().st_mtime


def _whole(folder: Path, latest: float) -> Iterator[Path]:
    """Files last written before `latest`; those of one kernel, which share a stem, or none."""
    kernels: dict[Path, list[Path]] = defaultdict(list)
    for file in _files(folder):
        kernels[file.with_suffix("")].append(file)
    for files in kernels.values():
        if max(file.stat().st_mtime for file in files) <= latest:
            yield from files


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _move(file: Path, to: Path) -> None:
    """Nobody sees a part of it, though it may come from another disk."""
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    shutil.copyfile(file, temporary)
    temporary.replace(to)


def _engine_version() -> str:
    try:
        known: str | None = version("mlx")  # None in the middle of an installation
    except (PackageNotFoundError, OSError):
        known = None
    return known or "unknown"
