"""When a write to the policy folder is over: half a file must never be taken for a whole one.

Three signs together: nothing changes for the quiet period; on Linux, nobody has a changed file open
for writing (a read lease is refused while somebody has); and a file that vanished has had time to
come back, since some editors delete before they write.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from mlxd.core.clock import Clock
from mlxd.policy import files
from mlxd.policy.files import PolicyFiles

QUIET_SECONDS = 0.1
"""Between the last change seen and the reading of it: several files are often saved together."""
VANISHED_SECONDS = 2.0
"""How long a file must be gone before it counts as deleted."""
PATIENCE_SECONDS = 10.0
"""How long a writer may hold a file open without changing it before it is read all the same."""
RESTLESS_SECONDS = 2.0
"""After this long without a quiet period, two equal readings are enough."""
DEADLINE_SECONDS = 60.0
"""A folder that never stands still is taken as it is."""
_STEP_SECONDS = 0.02

Read = Callable[[Collection[str]], Awaitable[tuple[bool, PolicyFiles]]]
"""Says whether one of these files is being written, and what the folder holds after that."""


async def settled(
    read: Read,
    before: PolicyFiles,
    clock: Clock,
    *,
    quiet: float = QUIET_SECONDS,
) -> PolicyFiles:
    """Read until what is read has stood still. `before` are the files in force."""
    began = since = clock.monotonic()
    _, last = await read(())
    while True:
        await asyncio.sleep(_STEP_SECONDS)
        busy, found = await read(last.changed_from(before))
        now = clock.monotonic()
        if now - began >= DEADLINE_SECONDS:
            return found
        if found.hash != last.hash:
            last, since = found, now
            continue
        if _vanished(found, before) and now - since < VANISHED_SECONDS:
            continue
        if busy and now - since < PATIENCE_SECONDS:
            continue
        if now - since >= quiet or now - began >= RESTLESS_SECONDS:
            return found


def _vanished(found: PolicyFiles, before: PolicyFiles) -> bool:
    return any(name not in found.contents for name in before.contents)


def observe(folder: Path | None, names: Collection[str]) -> tuple[bool, PolicyFiles]:
    """As `Read`, at once and waiting for the disk."""
    busy = folder is not None and any(open_for_writing(folder / name) for name in names)
    return busy, files.read(folder)


def open_for_writing(file: Path) -> bool:
    """Whether somebody has the file open to write to it; False where the system does not tell."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Somebody who opens it while we hold the lease is held up, and we are signalled: SIGURG
        # is ignored by default, the usual SIGIO would end the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False  # another user's file, or a file system without leases
    else:
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    finally:
        os.close(descriptor)
