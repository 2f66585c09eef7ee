"""Several generations of one call, read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mlxd.core.events import Burst

AT_ONCE = 32
"""Generations of one call that run together; the others wait for their turn."""

Unread = Callable[[int, Burst], None]
"""Told of each burst that was taken of a generation and reaches nobody, with its number."""
_Said = tuple[int, Burst] | BaseException | None
"""What one of them has to say: a burst, what went wrong, or that it is over."""


@asynccontextmanager
async def closing_all(each: Sequence[AsyncGenerator[Burst, None]]) -> AsyncIterator[None]:
    """Close them on the way out, all at once: each may have to wait for its worker's word."""
    try:
        yield
    finally:
        ends = await asyncio.gather(*(one.aclose() for one in each), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end


def _forgotten(number: int, burst: Burst) -> None:
    """Where nobody comes back to them."""


async def merged(
    each: Sequence[AsyncIterator[Burst]], unread: Unread = _forgotten
) -> AsyncGenerator[tuple[int, Burst], None]:
    """Bursts as they come, each with the number of its generation.

    The first error of any of them is raised, and then none is read any more; closing them is left
    to whoever made them.
    """
    said: asyncio.Queue[_Said] = asyncio.Queue(1)  # a slow reader holds them up, as it does one
    room = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.create_task(_pump(n, one, room, said, unread)) for n, one in enumerate(each)]
    try:
        left = len(tasks)
        while left:
            word = await said.get()
            if word is None:
                left -= 1
            elif isinstance(word, BaseException):
                raise word
            else:
                yield word
    finally:
        while not said.empty():  # before what those hold who wait to say more
            word = said.get_nowait()
            if isinstance(word, tuple):
                unread(*word)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    number: int,
    bursts: AsyncIterator[Burst],
    room: asyncio.Semaphore,
    said: asyncio.Queue[_Said],
    unread: Unread,
) -> None:
    end: BaseException | None = None
    async with room:
        try:
            async for burst in bursts:
                try:
                    await said.put((number, burst))
                except asyncio.CancelledError:
                    unread(number, burst)
                    raise
        except Exception as error:  # noqa: BLE001 - it is raised where the bursts are read
            end = error
    await said.put(end)
