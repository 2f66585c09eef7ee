"""`mlxd stop`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from mlxd.cli import exits
from mlxd.core import places
from mlxd.core.instance import absent, is_claimed, pid_of, running
from mlxd.core.peer import peer_at

_PATIENCE = 120.0
_STEP = 0.05
_CONNECT_SECONDS = 1.0
"""One that hangs is to be stopped, too."""


def stop(policies: str | None, state: str | None) -> int:
    """Ask the daemon of this state folder to stop, and wait until it has."""
    folder = places.find(policies, state).state.path
    if not is_claimed(folder):
        print(absent(folder), file=sys.stderr)
        return exits.FAILED
    written = pid_of(folder)
    pid = _listening(folder, written)
    if pid <= 0:
        print(_unseen(folder, written), file=sys.stderr)
        return exits.FAILED
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        print(f"mlxd (pid {pid}) cannot be signalled: {error.strerror}", file=sys.stderr)
        return exits.FAILED
    deadline = time.monotonic() + _PATIENCE
    while is_claimed(folder) and pid_of(folder) in (0, written):  # a socket may start the next one
        if time.monotonic() > deadline:
            print(f"mlxd (pid {pid}) has not stopped within {_PATIENCE:g} s", file=sys.stderr)
            return exits.FAILED
        time.sleep(_STEP)
    print(f"mlxd (pid {pid}) stopped")
    return exits.DONE


def _listening(folder: Path, otherwise: int) -> int:
    """The pid of the process that has the admin socket, which is nobody else's; `otherwise` where
    that cannot be asked. The file may name one of another container, or have been written by hand.
    """
    daemon = running(folder)
    if daemon is None or not daemon.admin:
        return otherwise
    said = Path(daemon.admin)
    for path in (said, folder / said.name):  # a container has the folder by another path
        with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(str(path))
            if (peer := peer_at(sock)) is not None:
                return peer.pid
    return otherwise


def _unseen(folder: Path, written: int) -> str:
    if written <= 0:
        return f"{folder}/mlxd.pid names no process"
    return f"mlxd runs on {folder} where it cannot be signalled from here, such as in a container"
