"""Where a model is put together, and the one moment in which it is there whole.

    <into>/.partial/ORGANISATION/NAME/   lock    held by the process that pulls
                                         blobs/  files by their digest: right for any commit
                                         whole/  the folder as it will be
    <into>/ORGANISATION/NAME/            the model

The scan looks at no name with a dot in front.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxd.core import durable, manifest
from mlxd.core.manifest import File, Manifest
from mlxd.hub.failure import PullFailure
from mlxd.hub.listing import Listing, Remote

_CHUNK = 2**20
_SPARE_BYTES = 64 * 2**20
"""Of the disk, left to others."""


class Place:
    """The folders of one repository."""

    def __init__(self, into: Path, repo: str) -> None:
        self.repo = repo
        self.final = into / repo
        self._partial = into / manifest.PARTIAL / repo
        self._blobs = self._partial / "blobs"
        self._whole = self._partial / "whole"

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process works here meanwhile. Raises PullFailure, OSError."""
        self._blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._partial / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise PullFailure("occupied", f"another process pulls {self.repo}") from None
        finally:
            os.close(lock)

    def blob(self, file: Remote) -> Path:
        """Where it is fetched to; there already, perhaps in part, after an earlier attempt."""
        return self._blobs / file.digest.replace(":", "-")

    def is_there(self, listing: Listing) -> bool:
        """Whether this commit is in place, its files of the right sizes. Raises PullFailure."""
        present = manifest.read(self.final)
        if present is None:
            if os.path.lexists(self.final):
                raise PullFailure("occupied", f"a folder that was not pulled is called {self.repo}")
            return False
        if present.revision != listing.revision or len(present.files) != len(listing.files):
            return False
        with contextlib.suppress(OSError):
            return all((self.final / f.name).stat().st_size == f.size for f in present.files)
        return False

    def reuse(self, listing: Listing) -> None:
        """Take what an earlier commit has in common; drop what this one does not need."""
        wanted = {self.blob(file).name: file for file in listing.files}
        for path in self._blobs.iterdir():
            if path.name not in wanted:
                path.unlink()
        shutil.rmtree(self._whole, ignore_errors=True)
        present = manifest.read(self.final)
        for old in present.files if present is not None else ():
            file = wanted.get(f"sha256-{old.sha256}")
            if file is not None:
                with contextlib.suppress(OSError):  # a help, not a need
                    self._take(self.final / old.name, file)

    def _take(self, old: Path, file: Remote) -> None:
        """Raises OSError."""
        blob = self.blob(file)
        if _size(blob) < file.size and _digests(old, file)[1] == file.digest:
            blob.unlink(missing_ok=True)
            os.link(old, blob)

    def check_space(self, listing: Listing) -> None:
        """Raises PullFailure when the disk cannot hold what is missing."""
        missing = sum(max(0, file.size - _size(self.blob(file))) for file in listing.files)
        free = shutil.disk_usage(self._partial).free
        if missing and missing + _SPARE_BYTES > free:
            raise PullFailure(
                "no_space", f"{self.repo} needs {missing} bytes more on the disk; {free} are free"
            )

    def verify(self, file: Remote) -> File:
        """Read it again: it is what the hub promised, or gone. Raises PullFailure, OSError."""
        blob = self.blob(file)
        sha256, found = _digests(blob, file)
        if found != file.digest:
            blob.unlink()
            raise PullFailure(
                "corrupt",
                f"{file.name} is not what the hub promised ({file.digest}): it is thrown away,"
                " pull again to fetch it anew",
            )
        return File(file.name, file.size, sha256)

    def put(self, listing: Listing, files: tuple[File, ...]) -> None:
        """All at once, in place of an earlier commit. Raises OSError."""
        shutil.rmtree(self._whole, ignore_errors=True)
        self._whole.mkdir(mode=0o755)
        left = Counter(file.digest for file in listing.files)
        for file in listing.files:
            left[file.digest] -= 1
            _put_one(self.blob(file), self._whole / file.name, again=left[file.digest] > 0)
        manifest.write(self._whole, Manifest(self.repo, listing.revision, files))
        durable.sync_folder(self._whole)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        old = self._partial / "old"
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.final.rename(old)
        self._whole.rename(self.final)
        durable.sync_folder(self.final.parent)

    def clear(self) -> None:
        """Remove what it was made from."""
        shutil.rmtree(self._partial, ignore_errors=True)
        for folder in (self._partial.parent, self._partial.parent.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def no_space(error: OSError) -> bool:
    """Whether a write failed because there is no more room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _digests(blob: Path, file: Remote) -> tuple[str, str]:
    """(sha256, the digest by which the hub knows it)."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % _size(blob), usedforsecurity=False)
    in_git = file.digest.startswith("sha1:")
    feeds: list[Callable[[bytes], object]] = [sha256.update, *([git.update] if in_git else [])]
    with blob.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            for feed in feeds:
                feed(chunk)
    own = sha256.hexdigest()
    return own, f"sha1:{git.hexdigest()}" if in_git else f"sha256:{own}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _put_one(blob: Path, target: Path, *, again: bool) -> None:
    """Some disks know no links: then it is moved, or copied where it is needed `again`."""
    try:
        os.link(blob, target)
    except OSError:
        if again:
            shutil.copyfile(blob, target)
        else:
            blob.replace(target)
    target.chmod(0o644)
