"""The daemon's C heap: few arenas, and what is free in them goes back to the system.

glibc gives threads arenas of their own, up to eight for each core. What outlives a thread's work
there, such as a new policy, keeps the pages around it: the daemon grew by 10 MB in its first hour
of reloads.
"""

from __future__ import annotations

import asyncio
import contextlib

from mlxd.core.heap import Heap
from mlxd.core.threads import NoThread, Threads

TRIM_SECONDS = 60.0
_ARENAS = 2


async def keep_small(threads: Threads) -> None:
    """Runs until it is cancelled."""
    heap = Heap.found()
    if heap is None:
        return
    heap.bound_arenas(_ARENAS)
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        with contextlib.suppress(NoThread):
            await threads.run(heap.trim)
