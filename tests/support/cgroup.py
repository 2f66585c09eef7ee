"""A real limit of memory for what a test starts: a memory cgroup of its own, version 1 or 2."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlxd.control import cgroup

_EMPTY_SECONDS = 10.0
_V1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.usage_in_bytes")
_V2 = ("memory.max", "memory.swap.max", "memory.current")


@dataclass(frozen=True, slots=True)
class LimitedGroup:
    """A group that exists, with its limit set."""

    folder: Path
    limit: int
    """Bytes; the kernel rounds it to whole pages."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """Starts a program inside: `daemon(folder, prefix=group.prefix)`; its children follow."""
        procs = self.folder / "cgroup.procs"
        return ("sh", "-c", f'echo $$ > "{procs}" && exec "$@"', "sh")

    def usage(self) -> int:
        """Bytes that count now, cached files included."""
        return int((self.folder / _names(self.folder)[2]).read_text())

    def kills(self) -> int:
        """Processes that the kernel has ended because the limit was reached."""
        file = "memory.oom_control" if _names(self.folder) == _V1 else "memory.events"
        lines = (self.folder / file).read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", 0))


@contextmanager
def memory_limit(limit: int) -> Iterator[LimitedGroup]:
    """A group with a limit in bytes and without swap, for the length of the block.

    Skips the test where none can be made. What still runs inside at the end is killed.
    """
    folder = _made()
    try:
        yield LimitedGroup(folder, _set(folder, limit))
    finally:
        _remove(folder)


def _made() -> Path:
    """Below this process's own group; in version 2 a group with processes may have none below it
    that count memory, so it is the nearest around it that may.
    """
    own = cgroup.own_group(Path("/"))
    reason = "this system has no memory cgroups"
    for parent in own.folders if own is not None else ():
        folder = parent / f"mlxd-test-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError as error:
            reason = f"no memory cgroup can be made: {error.strerror}"
            continue
        if any((folder / name).exists() for name in (_V1[0], _V2[0])):
            return folder
        folder.rmdir()
    pytest.skip(reason)


def _set(folder: Path, limit: int) -> int:
    """The limit as the kernel took it."""
    names = _names(folder)
    try:
        (folder / names[0]).write_text(str(limit))
        if (folder / names[1]).exists():
            (folder / names[1]).write_text("0" if names == _V2 else str(limit))
    except OSError as error:
        pytest.skip(f"no limit of memory can be set: {error.strerror}")
    return int((folder / names[0]).read_text())


def _names(folder: Path) -> tuple[str, str, str]:
    return _V1 if (folder / _V1[0]).exists() else _V2


def _remove(folder: Path) -> None:
    """The kernel lets a group go a moment after its last process."""
    deadline = time.monotonic() + _EMPTY_SECONDS
    while folder.exists():
        try:
            for pid in (folder / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            folder.rmdir()
        except OSError:
            assert time.monotonic() < deadline, f"{folder} is not empty"
            time.sleep(0.01)
