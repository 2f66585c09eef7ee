"""The traffic log on the disk: rotated files in a folder of their own, written by a thread."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlxd.core import durable
from mlxd.core.threads import NoThread
from mlxd.telemetry import traffic
from mlxd.telemetry.background import Background
from mlxd.telemetry.log_file import RotatedFile, Target
from mlxd.telemetry.traffic import Line, Missing, Opening

log = logging.getLogger(__name__)

SALT = "salt"
"""The file beside them. Without it nobody can try out which address a hash is of."""
MOST_WAITING = 20_000
"""Lines, some megabytes: more than comes while a disk is slow."""
_SALT_BYTES = 32


class TrafficLog:
    """Has each line written. A request never waits for it, whatever the disk does."""

    def __init__(self, target: Target, opening: Callable[[], Opening]) -> None:
        """`opening` is asked in the thread for what a file begins with, but for the salt."""
        self.target = target
        self.failure = ""
        """Why the log is not written now."""
        self._opening = opening
        self._salt = b""
        self._dropped = 0
        """By who adds; `_failed` by the thread."""
        self._failed = 0
        self._told = 0
        """Of those that are lost, as many as the log itself says."""
        self._file = RotatedFile(target, self._first)
        self._waiting = Background[Line]("traffic", self._write, self._file.close)

    @property
    def lost(self) -> int:
        """Lines that nobody will read."""
        return self._dropped + self._failed

    @property
    def over(self) -> bool:
        """It was finished, and all is written."""
        return self._waiting.over

    def add(self, line: Line) -> None:
        """Whoever it names is hashed on the way to the disk."""
        if not self._waiting.begun():
            self._drop(NoThread.words)
        elif self._waiting.waiting() >= MOST_WAITING:
            self._drop("its disk hangs")
        else:
            self._waiting.put(line)

    def _drop(self, why: str) -> None:
        self._dropped += 1
        self._fails(why)

    def follow(self, target: Target) -> None:
        """Other bounds for the same files."""
        self.target = target
        self._file.target = target

    def finish(self) -> None:
        """Write what is waiting, and nothing more; waits for nothing."""
        self._waiting.finish()

    def close(self) -> None:
        """At the end of the process: as `finish`, and wait for that a moment."""
        self._waiting.close()

    def _write(self, line: Line) -> None:
        try:
            self._salt = self._salt or _salt_in(self.target.path.parent)
            if untold := self.lost - self._told:
                self._file.write(traffic.encode(Missing(at=line.at, count=untold)))
                self._told += untold
            self._file.write(traffic.encode(traffic.sealed(line, self._salt)))
        except OSError as error:
            self._failed += 1
            self._fails(error.strerror or str(error))
        else:
            self.failure = ""

    def _first(self) -> bytes:
        named = hashlib.sha256(self._salt).hexdigest()[:16]
        return traffic.encode(msgspec.structs.replace(self._opening(), salt=named))

    def _fails(self, why: str) -> None:
        if why != self.failure:
            self.failure = why
            log.warning("the traffic log %s cannot be written: %s", self.target.path, why)


def _salt_in(folder: Path) -> bytes:
    """The folder's own, made with its first file. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / SALT
    try:
        salt = bytes.fromhex(durable.read(file, 1024).decode("ascii"))
    except (FileNotFoundError, ValueError):
        salt = b""
    if len(salt) != _SALT_BYTES:
        salt = secrets.token_bytes(_SALT_BYTES)
        durable.write(file, salt.hex().encode())
    return salt
