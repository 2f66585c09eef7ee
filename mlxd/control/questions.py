"""What an engine process is asked beside its generations, and whether it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlxd.core.clock import Clock, within
from mlxd.ipc import messages as ipc


class Questions:
    """To one process. None in place of an answer: it gave none in time, or is gone."""

    def __init__(self, clock: Clock, send: Callable[[ipc.Down], None]) -> None:
        self._clock = clock
        self._send = send
        self._pong: asyncio.Future[ipc.Pong | None] | None = None
        self._about_cache: dict[int, asyncio.Future[ipc.CacheStats | None]] = {}
        self._next_id = 1

    async def ping(self, timeout: float) -> ipc.Pong | None:
        """All that ask at one time have one answer."""
        if self._pong is None or self._pong.done():
            self._pong = asyncio.get_running_loop().create_future()
        self._send(ipc.Ping())
        try:
            async with within(self._clock, timeout):
                return await asyncio.shield(self._pong)
        except TimeoutError:
            return None

    async def about_cache(
        self, ask: Callable[[int], ipc.CacheAsk | ipc.CacheClear], timeout: float
    ) -> ipc.CacheStats | None:
        """`ask` makes the question with this id."""
        id, self._next_id = self._next_id, self._next_id + 1
        told: asyncio.Future[ipc.CacheStats | None] = asyncio.get_running_loop().create_future()
        self._about_cache[id] = told
        self._send(ask(id))
        try:
            async with within(self._clock, timeout):
                return await told
        except TimeoutError:
            return None
        finally:
            self._about_cache.pop(id, None)

    def answered(self, answer: ipc.Pong | ipc.CacheStats) -> None:
        """It says something."""
        if isinstance(answer, ipc.Pong):
            self._settle_ping(answer)
        else:
            self._settle_cache(answer.id, answer)

    def end(self) -> None:
        """It is gone."""
        self._settle_ping(None)
        for id in list(self._about_cache):
            self._settle_cache(id, None)

    def _settle_ping(self, pong: ipc.Pong | None) -> None:
        if self._pong is not None and not self._pong.done():
            self._pong.set_result(pong)

    def _settle_cache(self, id: int, stats: ipc.CacheStats | None) -> None:
        asked = self._about_cache.pop(id, None)
        if asked is not None and not asked.done():
            asked.set_result(stats)
