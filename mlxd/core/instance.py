"""Which daemon holds a state folder, seen from outside. Each command looks: this imports little."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import NamedTuple

from mlxd.core import durable, places

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
    """Whether a living daemon holds the folder; False where its disk does not tell."""
    try:
        lock = _opened(state / LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others may look meanwhile
    except BlockingIOError:
        return True
    except OSError:  # a network disk whose server gives no locks
        return False
    finally:
        os.close(lock)
    return False


def is_guarded(state: Path) -> bool:
    """Whether this user may not know if a daemon holds the folder."""
    return places.is_forbidden(lambda: os.close(_opened(state / LOCK)))


def absent(state: Path) -> str:
    """For people: why no daemon was found there."""
    if is_guarded(state):
        return guarded_words(state)
    return f"no mlxd runs with the state folder {state}"


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


def _opened(lock: Path) -> int:
    """For reading: its disk may have become read-only. A pipe in its place is not waited for.

    Raises OSError.
    """
    return os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
