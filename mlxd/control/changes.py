"""Tells whoever waits that something has changed."""

from __future__ import annotations

import asyncio
import contextlib


class Changes:
    """Wakes all who wait, in the order in which they came."""

    def __init__(self) -> None:
        self._waiters: dict[asyncio.Future[None], None] = {}

    def tell(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, seconds: float | None) -> None:
        """Until the next change, not longer than this where it is a number."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter
        finally:
            del self._waiters[waiter]
