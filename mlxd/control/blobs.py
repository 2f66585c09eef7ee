"""Files that clients upload to create models of, in `<state>/blobs/`, each named by its SHA-256."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlxd.core.clock import Clock
from mlxd.core.errors import InsufficientStorage, InvalidRequest, Overloaded, PolicyLine
from mlxd.core.threads import Threads

MOST_AT_ONCE = 4
"""Uploads under way."""
SPARE_BYTES = 64 * 2**20
"""Of the disk, left to others."""
_BATCH = 2**20
_NAME = re.compile(r"sha256-[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Bounds:
    """models.uploads."""

    most_bytes: int
    most_files: int
    keep_seconds: float
    line: PolicyLine
    """The one that says `most_bytes`."""
    files_line: PolicyLine


class Blobs:
    """The daemon alone writes there."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._threads = Threads("uploads")
        self._parts: set[Path] = set()
        """Of uploads under way."""

    async def has(self, digest: str) -> bool:
        """Whether it is there; who asks will want it."""
        return await self._threads.run(self._touched, digest)

    async def receive(self, digest: str, pieces: AsyncIterator[bytes], bounds: Bounds) -> bool:
        """Keep what `pieces` bring; False when it is there already, and they are not read then.

        Raises InvalidRequest for bytes that are not those of the digest, InsufficientStorage,
        Overloaded, and what `pieces` raise.
        """
        if await self.has(digest):
            return False
        if len(self._parts) >= MOST_AT_ONCE:
            raise Overloaded(
                f"{MOST_AT_ONCE} uploads are under way already",
                retry_after=5.0,
                numbers={"uploads": len(self._parts), "allowed": MOST_AT_ONCE},
                would_pass="the same upload once one of them is over",
            )
        part = self._folder / f".{digest}.{time.monotonic_ns()}.part"
        upload = _Upload(part)
        self._parts.add(part)
        try:
            await self._threads.run(self.sweep, bounds.keep_seconds)
            await self._fill(upload, pieces, bounds)
            await self._threads.run(upload.finish, digest, self.path(digest))
        except OSError as error:
            raise _no_room(error) from error
        finally:
            try:
                await self._threads.run(upload.end)
            finally:  # also where there is no thread for it
                self._parts.discard(part)
        return True

    def path(self, digest: str) -> Path:
        return self._folder / f"sha256-{digest}"

    def sweep(self, keep_seconds: float) -> None:
        """Remove what nobody wanted for so long, and uploads that were cut off. Blocks."""
        before = self._clock.wall() - keep_seconds
        with contextlib.suppress(OSError):
            for entry in self._folder.iterdir():
                if entry in self._parts or not (_is_part(entry) or _NAME.fullmatch(entry.name)):
                    continue
                if _is_part(entry) or entry.stat().st_mtime < before:
                    entry.unlink(missing_ok=True)

    async def _fill(self, upload: _Upload, pieces: AsyncIterator[bytes], bounds: Bounds) -> None:
        batch: list[bytes] = []
        size = 0
        async for piece in pieces:
            batch.append(piece)
            size += len(piece)
            if size >= _BATCH:
                await self._threads.run(self._write, upload, b"".join(batch), bounds)
                batch, size = [], 0
        await self._threads.run(self._write, upload, b"".join(batch), bounds)

    def _write(self, upload: _Upload, data: bytes, bounds: Bounds) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        files, stored = self._stored()
        self._check_count(files if upload.begun else files + 1, bounds)
        if stored + len(data) > bounds.most_bytes:
            raise InsufficientStorage(
                "uploads take no more room on the disk",
                policy=bounds.line,
                numbers={"stored_bytes": stored, "allowed_bytes": bounds.most_bytes},
                would_pass="the same upload once others were swept",
            )
        if len(data) + SPARE_BYTES > shutil.disk_usage(self._folder).free:
            raise InsufficientStorage("the disk has no room for this upload")
        upload.write(data)

    def _check_count(self, files: int, bounds: Bounds) -> None:
        """Raises InsufficientStorage."""
        if files > bounds.most_files:
            raise InsufficientStorage(
                "no more files are kept that were uploaded",
                policy=bounds.files_line,
                numbers={"files": files - 1, "allowed": bounds.most_files},
                would_pass="the same upload once others were swept",
            )

    def _stored(self) -> tuple[int, int]:
        """Files, and their bytes."""
        count = total = 0
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
                count += 1
        return count, total

    def _touched(self, digest: str) -> bool:
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        return True


class _Upload:
    """One file as it grows, in whichever thread; a write that comes after its end does nothing."""

    def __init__(self, part: Path) -> None:
        self._part = part
        self._sha256 = hashlib.sha256()
        self._writing = threading.Lock()
        self._stream: BinaryIO | None = None
        self._over = False

    @property
    def begun(self) -> bool:
        """There is a file of it."""
        return self._stream is not None

    def write(self, data: bytes) -> None:
        with self._writing:
            if self._over:
                return
            if self._stream is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._stream = os.fdopen(os.open(self._part, flags, 0o600), "wb")
            self._sha256.update(data)
            self._stream.write(data)

    def finish(self, digest: str, target: Path) -> None:
        """Raises InvalidRequest."""
        found = self._sha256.hexdigest()
        if found != digest:
            words = f'digest mismatch, expected "sha256:{digest}", got "sha256:{found}"'
            raise InvalidRequest(words, param="digest")
        with self._writing:
            if self._over or self._stream is None:
                return
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._part.replace(target)

    def end(self) -> None:
        """Whatever is not finished goes."""
        with self._writing, contextlib.suppress(OSError):
            self._over = True
            if self._stream is not None:
                self._stream.close()
            self._part.unlink(missing_ok=True)


def _is_part(entry: Path) -> bool:
    return entry.name.startswith(".") and entry.name.endswith(".part")


def _no_room(error: OSError) -> InsufficientStorage:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = "the disk has no room for it" if full else (error.strerror or "it cannot be written")
    return InsufficientStorage(f"the upload is not kept: {why}")
