"""The claim of a daemon on its state folder: a lock that dies with its process.

`mlxd.pid` is for people and scripts; `daemon.json` tells the commands where the daemon listens. The
lock decides: files of a daemon that is gone are stale and mean nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

from mlxd.core import aside, durable
from mlxd.core.instance import ADDRESS, LOCK, PID, Address, pid_of

_PATIENCE_SECONDS = 0.5
_STEP_SECONDS = 0.01


class AlreadyRunning(Exception):
    """Another daemon holds the state folder; `pid` is 0 when it does not say which."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"another mlxd runs with this state folder (pid {pid or 'unknown'})")
        self.pid = pid


class Claim:
    """Of this process, on one folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._lock = -1

    def take(self) -> None:
        """Have the folder, creating it if need be. Raises AlreadyRunning, OSError."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (LOCK, PID, ADDRESS):
            aside.clear_for_file(self.state / name)
        self._lock = _opened(self.state / LOCK)
        if not _locked(self._lock):
            os.close(self._lock)
            self._lock = -1
            raise AlreadyRunning(pid_of(self.state))
        durable.tidy(self.state)
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            _write(self.state / PID, f"{os.getpid()}\n")

    def announce(self, address: Address) -> None:
        """Say where the daemon listens."""
        _write(self.state / ADDRESS, json.dumps({"schema": 1} | address._asdict()) + "\n")

    def release(self) -> None:
        """Leave the folder to the next one."""
        if self._lock >= 0:
            for name in (PID, ADDRESS):
                (self.state / name).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def _locked(lock: int) -> bool:
    """A daemon holds it for good; a command that looks whether one does, for a moment."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_STEP_SECONDS)
        else:
            return True


def _opened(lock: Path) -> int:
    """Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(lock, flags, 0o600)
    except FileNotFoundError:
        aside.set_aside(lock, "it is a link to nothing")
    return os.open(lock, flags, 0o600)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
