"""Who may have a prompt told: without a slot, but few at a time for each client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mlxd.core.errors import Overloaded

AT_ONCE = 2
"""Of one client. Tokenising is all that they take, but of that a long one takes seconds."""
MOST_WAITING = 32
"""Of one client, behind those."""


@dataclass(slots=True)
class _Line:
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    count: int = 0


class Prompts:
    """A line for each client that has any."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Hold a place for the length of the block. Raises Overloaded."""
        line = self._lines.setdefault(client, _Line())
        if line.count >= AT_ONCE + MOST_WAITING:
            raise Overloaded(
                "too many prompts of this client wait to be counted",
                retry_after=1.0,
                numbers={"waiting": line.count - AT_ONCE, "may_wait": MOST_WAITING},
                would_pass="the same request once some of them are counted",
            )
        line.count += 1
        try:
            async with line.room:
                yield
        finally:
            line.count -= 1
            if not line.count:
                del self._lines[client]
