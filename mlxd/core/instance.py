"""One daemon per state folder: a lock that dies with its process, and where to find the daemon.

`mlxd.pid` is for people and scripts; `daemon.json` tells the commands where the daemon listens. The
lock decides: files of a daemon that is gone are stale and mean nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from mlxd.core import aside, durable

_LOCK = "mlxd.lock"
_PID = "mlxd.pid"
_ADDRESS = "daemon.json"


class AlreadyRunning(Exception):
    """Another daemon holds the state folder; `pid` is 0 when it does not say which."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"another mlxd runs with this state folder (pid {pid or 'unknown'})")
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Address:
    """Where a running daemon is."""

    pid: int
    host: str
    port: int
    version: str
    admin: str = ""
    """The path of the admin socket."""


def authority(host: str, port: int) -> str:
    """Host and port as a URL writes them: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Instance:
    """The claim of this process on a state folder."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._lock = -1

    def claim(self) -> None:
        """Take the folder, creating it if need be. Raises AlreadyRunning, OSError."""
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (_LOCK, _PID, _ADDRESS):
            aside.clear_for_file(self.state / name)
        self._lock = os.open(self.state / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            raise AlreadyRunning(pid_of(self.state)) from None
        durable.tidy(self.state)
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            _write(self.state / _PID, f"{os.getpid()}\n")

    def announce(self, address: Address) -> None:
        """Say where the daemon listens."""
        _write(self.state / _ADDRESS, json.dumps({"schema": 1} | asdict(address)) + "\n")

    def release(self) -> None:
        """Leave the folder to the next one."""
        if self._lock >= 0:
            for name in (_PID, _ADDRESS):
                (self.state / name).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def running(state: Path) -> Address | None:
    """The daemon that holds this state folder now, if one does and has said where it listens."""
    if not is_claimed(state):
        return None
    try:
        found = json.loads((state / _ADDRESS).read_text())
        admin = found.get("admin", "")
        return Address(found["pid"], found["host"], found["port"], found["version"], admin)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_claimed(state: Path) -> bool:
    """Whether a living daemon holds the folder."""
    try:
        lock = os.open(state / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def pid_of(state: Path) -> int:
    """The pid that the last daemon wrote down; 0 if none is readable."""
    try:
        return int((state / _PID).read_text())
    except (OSError, ValueError):
        return 0


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
