"""The policy files as they are at one moment: read once, judged later, kept as history."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from mlxd.policy import strict_yaml
from mlxd.policy.policy_set import FILES


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What one reading of a folder found. Equal hashes: nothing has changed."""

    folder: Path | None = None
    """None: there is no folder, built-in defaults hold."""
    contents: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    """Bytes by file name; up to one more than a file may have."""
    strangers: tuple[str, ...] = ()
    """YAML files that are no policy file: a misspelled name would otherwise be ignored."""
    failures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Why a file, or the folder itself (under its own path), cannot be read."""

    @property
    def hash(self) -> str:
        """64 hex digits over names and bytes, and over what could not be read."""
        found = hashlib.sha256()
        for part in self._parts():
            found.update(b"%d:" % len(part) + part)
        return found.hexdigest()

    def with_contents(self, contents: Mapping[str, bytes]) -> PolicyFiles:
        """The same folder with other files in it; its strangers and failures stay."""
        return PolicyFiles(self.folder, MappingProxyType(dict(contents)), self.strangers,
                           self.failures)  # fmt: skip

    def changed_from(self, before: PolicyFiles) -> list[str]:
        """Names of files that differ, come or go."""
        names = {*self.contents, *before.contents}
        return sorted(
            name for name in names if self.contents.get(name) != before.contents.get(name)
        )

    def _parts(self) -> Iterator[bytes]:
        for name, raw in sorted(self.contents.items()):
            yield from (b"file", name.encode(errors="surrogateescape"), raw)
        for name in self.strangers:
            yield from (b"stranger", name.encode(errors="surrogateescape"))
        for name, reason in sorted(self.failures.items()):
            yield from (b"failure", name.encode(errors="surrogateescape"), reason.encode())


def read(folder: Path | None) -> PolicyFiles:
    """Read every policy file of a folder; what cannot be read is in `failures`."""
    if folder is None:
        return PolicyFiles()
    contents: dict[str, bytes] = {}
    failures: dict[str, str] = {}
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return PolicyFiles(folder, failures={str(folder): error.strerror or str(error)})
    for name in names:
        if name not in FILES:
            continue
        try:
            contents[name] = bytes_of(folder / name)
        except OSError as error:
            failures[name] = error.strerror or str(error)
    return PolicyFiles(
        folder,
        MappingProxyType(contents),
        tuple(filter(_stranger, names)),
        MappingProxyType(failures),
    )


def bytes_of(file: Path) -> bytes:
    """The file's bytes, up to one more than allowed; a FIFO is refused, not waited for."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        raw = stream.read(strict_yaml.MAX_BYTES + 1)
        if raw is None:  # a regular file of /proc may say that it has nothing yet
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return raw


def _stranger(name: str) -> bool:
    return name not in FILES and not name.startswith(".") and name.endswith((".yaml", ".yml"))
