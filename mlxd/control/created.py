"""Models made of uploaded files, in `<state>/created/`: like pulled ones, mlxd's to remove."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlxd.control.blobs import Blobs
from mlxd.control.model_files import read_card
from mlxd.control.pulled import PulledModels
from mlxd.core import durable, manifest
from mlxd.core.errors import InvalidRequest
from mlxd.core.manifest import PARTIAL, File, Manifest


class CreatedModels:
    """Blocks: call it in a thread."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        self.folder = folder
        self._blobs = blobs
        self._models = PulledModels(folder)
        self._building = threading.Lock()

    def holds(self, path: str) -> bool:
        """Whether a model's folder is one of them."""
        return self._models.holds(path)

    def remove(self, path: str) -> None:
        """It is gone at once, as a whole; its bytes follow. Raises OSError."""
        self._models.remove(path)

    def tidy(self) -> None:
        """Remove what a daemon that was killed has left half made or half removed."""
        self._models.tidy(())
        durable.remove_tree(self.folder / PARTIAL)

    def build(self, name: str, files: Sequence[tuple[str, str]], old: str = "") -> None:
        """A model of these files (name, SHA-256), in place of the folder `old`; all or nothing.

        Raises InvalidRequest, OSError.
        """
        target = self._place(name)
        with self._building:
            staging = self.folder / PARTIAL / secrets.token_hex(8)
            staging.mkdir(mode=0o755, parents=True)
            try:
                self._fill(staging, name, files)
                with self._aside(old):
                    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                    staging.rename(target)
                durable.sync_folder(target.parent)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    @contextmanager
    def _aside(self, old: str) -> Iterator[None]:
        """Where it is again if the block fails, and gone if it does not. Raises OSError."""
        if not old:
            yield
            return
        place, aside = Path(old), self.folder / PARTIAL / secrets.token_hex(8)
        place.rename(aside)
        try:
            yield
        except OSError:
            aside.rename(place)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # others of the same organisation are left
            place.parent.rmdir()

    def _place(self, name: str) -> Path:
        """Where a scan finds it under this name. Raises InvalidRequest."""
        place = self.folder / name.strip().removesuffix(":latest")
        over = place.parent
        if over.parent not in (self.folder, self.folder.parent) or (over / "config.json").exists():
            raise InvalidRequest(
                f'model "{name[:200]}" is invalid: write NAME or ORGANISATION/NAME'
            )
        return place

    def _fill(self, staging: Path, name: str, files: Sequence[tuple[str, str]]) -> None:
        known: list[File] = []
        for file, digest in files:
            blob = self._blobs.path(digest)
            if not blob.is_file():
                raise InvalidRequest(f'blob "sha256:{digest}" not found', param="files")
            _put(blob, staging / file)
            known.append(File(file, blob.stat().st_size, digest))
        card = read_card(staging, name)
        if reason := card.unavailable or card.flaw:
            raise InvalidRequest(f"these files are no model that can run: {reason}", param="files")
        manifest.write(staging, Manifest(name, "", tuple(known)))
        durable.sync_folder(staging)


def _put(blob: Path, target: Path) -> None:
    """Some disks know no links."""
    try:
        os.link(blob, target)
    except OSError:
        shutil.copyfile(blob, target)
    target.chmod(0o644)
