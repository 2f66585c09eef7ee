"""Which daemon holds a state folder, seen from outside. Each command looks: this imports little."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import NamedTuple

from mlxd.core import durable

LOCK = "mlxd.lock"
PID = "mlxd.pid"
ADDRESS = "daemon.json"
_MOST_BYTES = 1 << 16


class Address(NamedTuple):
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


def reachable(host: str) -> str:
    """An address that a client can connect to, for one that a listener binds to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def running(state: Path) -> Address | None:
    """The daemon that holds this state folder now, if one does and has said where it listens."""
    if not is_claimed(state):
        return None
    try:
        found = json.loads(durable.read(state / ADDRESS, _MOST_BYTES))
        admin = found.get("admin", "")
        return Address(found["pid"], found["host"], found["port"], found["version"], admin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_claimed(state: Path) -> bool:
    """Whether a living daemon holds the folder; False where that cannot be told."""
    try:
        lock = _opened(state / LOCK)
    except OSError:
        return False
    try:
        return _is_held(lock)
    except OSError:
        return False
    finally:
        os.close(lock)


def untold(state: Path) -> str:
    """For people: why nobody can tell whether a daemon holds the folder; empty: that is told."""
    try:
        lock = _opened(state / LOCK)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except PermissionError:
        return guarded_words(state)
    except OSError as error:
        return _untold_words(state, str(error.strerror))
    try:
        _is_held(lock)
    except OSError as error:
        return _untold_words(state, f"its disk gives no lock: {error.strerror}")
    finally:
        os.close(lock)
    return ""


def absent(state: Path) -> str:
    """For people: why no daemon was found there."""
    return untold(state) or f"no mlxd runs with the state folder {state}"


def guarded_words(state: Path) -> str:
    return (
        f"the state folder {state} cannot be looked at from here: permission denied; try as its"
        " user"
    )


def pid_of(state: Path) -> int:
    """The pid that the last daemon wrote down; 0 if none is readable."""
    try:
        return int(durable.read(state / PID, _MOST_BYTES))
    except (OSError, ValueError):
        return 0


def _untold_words(state: Path, why: str) -> str:
    return f"whether an mlxd runs with the state folder {state} cannot be told: {why}"


def _is_held(lock: int) -> bool:
    """By a daemon; who else looks holds it no more than we. Raises OSError where the disk gives no
    locks: a server of it may have ceased to.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _opened(lock: Path) -> int:
    """For reading: its disk may have become read-only. A pipe in its place is not waited for.

    Raises OSError.
    """
    return os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
