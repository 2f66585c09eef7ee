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

_PATIENCE_SECONDS = 0.1
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
        self._lock = self._taken()
        for name in (PID, ADDRESS):  # a killed one's: nobody is to signal who has its pid now
            with contextlib.suppress(OSError):
                (self.state / name).unlink()
        durable.tidy(self.state)
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            _write(self.state / PID, f"{os.getpid()}\n")

    def stands(self) -> bool:
        """Whether all that says so is where commands look: somebody may have removed it."""
        try:
            return self._holds() and all((self.state / name).exists() for name in (PID, ADDRESS))
        except OSError:
            return False

    def announce(self, address: Address) -> None:
        """Say where the daemon listens, and hold the folder anew where the lock is gone from it.

        Raises AlreadyRunning where another has claimed it since, OSError.
        """
        if not self._holds():
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            gone, self._lock = self._lock, self._taken()
            os.close(gone)
        _write(self.state / PID, f"{os.getpid()}\n")
        _write(self.state / ADDRESS, json.dumps({"schema": 1} | address._asdict()) + "\n")

    def release(self) -> None:
        """Leave the folder to the next one."""
        if self._lock >= 0:
            for name in (PID, ADDRESS) if self._holds() else ():  # else they are another's
                (self.state / name).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def _holds(self) -> bool:
        """Whether its lock is the one in the folder. Raises OSError."""
        try:
            return os.path.samestat(os.fstat(self._lock), (self.state / LOCK).stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _taken(self) -> int:
        """The lock in the folder, held from now on. Raises AlreadyRunning, OSError."""
        with contextlib.ExitStack() as left:
            lock = _opened(self.state / LOCK)
            left.callback(os.close, lock)
            if not _locked(lock):
                raise AlreadyRunning(pid_of(self.state))
            left.pop_all()
        return lock


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
