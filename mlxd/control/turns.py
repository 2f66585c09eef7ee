"""One at a time, and each client in its turn: who has many waiting holds nobody else up for more
than one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """For the event loop's thread."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By client, the next first."""

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Nobody else has it for the length of the block."""
        if self._taken:
            await self._wait(client)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if given.cancelled():
                self._leave(client, given)
            else:  # both at once: others still wait
                self._pass_on()
            raise

    def _leave(self, client: str, given: asyncio.Future[None]) -> None:
        with contextlib.suppress(KeyError, ValueError):  # it was passed over meanwhile
            line = self._waiting[client]
            line.remove(given)
            if not line:
                del self._waiting[client]

    def _pass_on(self) -> None:
        """To the next who still waits; its client's others go behind everybody's."""
        self._taken = False
        while self._waiting and not self._taken:
            client, line = self._waiting.popitem(last=False)
            while line and not self._taken:
                given = line.popleft()
                if not given.done():  # one that was given up takes no turn
                    given.set_result(None)
                    self._taken = True
            if line:
                self._waiting[client] = line
