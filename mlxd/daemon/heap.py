"""The daemon's C heap: few arenas, and what is free in them goes back to the system.

glibc gives threads arenas of their own, up to eight for each core. What outlives a thread's work
there, such as a new policy, keeps the pages around it: the daemon grew by 10 MB in its first hour
of reloads. Other C libraries have nothing of this to set.
"""

from __future__ import annotations

import asyncio
import sys

from mlxd.core.threads import Threads

TRIM_SECONDS = 60.0
_ARENAS = 2
_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


async def keep_small(threads: Threads) -> None:
    """Runs until it is cancelled."""
    import ctypes  # which takes its time: the daemon serves already

    system = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(system, "mallopt") and hasattr(system, "malloc_trim")):
        return
    assert system is not None
    system.mallopt(_M_ARENA_MAX, _ARENAS)
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await threads.run(system.malloc_trim, 0)
