"""`mlxd stop`."""

from __future__ import annotations

import os
import signal
import sys
import time

from mlxd.cli import exits
from mlxd.core import places
from mlxd.core.instance import absent, is_claimed, pid_of

_PATIENCE = 120.0
_STEP = 0.05


def stop(policies: str | None, state: str | None) -> int:
    """Ask the daemon of this state folder to stop, and wait until it has."""
    folder = places.find(policies, state).state.path
    if not is_claimed(folder):
        print(absent(folder), file=sys.stderr)
        return exits.FAILED
    pid = pid_of(folder)
    if pid <= 0:
        print(f"{folder}/mlxd.pid names no process", file=sys.stderr)
        return exits.FAILED
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        print(f"mlxd (pid {pid}) cannot be signalled: {error.strerror}", file=sys.stderr)
        return exits.FAILED
    deadline = time.monotonic() + _PATIENCE
    while is_claimed(folder) and pid_of(folder) in (0, pid):  # a socket may start the next one
        if time.monotonic() > deadline:
            print(f"mlxd (pid {pid}) has not stopped within {_PATIENCE:g} s", file=sys.stderr)
            return exits.FAILED
        time.sleep(_STEP)
    print(f"mlxd (pid {pid}) stopped")
    return exits.DONE
