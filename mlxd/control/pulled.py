"""The models that were pulled, in `<state>/models/`: the only folders that mlxd removes."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from mlxd.core import manifest
from mlxd.core.manifest import Manifest

_GOING = ".going"


class PulledModels:
    """Blocks: call what reads or writes in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, path: str) -> bool:
        """Whether a model's folder is one of them."""
        return Path(path).is_relative_to(os.path.realpath(self.folder))

    def manifest(self, path: str) -> Manifest | None:
        return manifest.read(Path(path))

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
        shutil.rmtree(grave, ignore_errors=True)
        model.rename(grave)
        with contextlib.suppress(OSError):  # others of the same organisation are left
            model.parent.rmdir()
        self.tidy()

    def tidy(self) -> None:
        """Remove what is going; after a daemon that was killed while it did."""
        shutil.rmtree(self.folder / _GOING, ignore_errors=True)
