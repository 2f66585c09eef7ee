"""One client, blocking or not: the same questions, and the same answers as values and lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Iterator
from operator import attrgetter
from types import TracebackType
from typing import Any, Self

BOTH = ("sync", "async")


class Asker:
    """Calls methods by name: `ask("chat.completions.create", model=...)`.

    Streams come as lists; what is awaitable is awaited, in one loop for the client's whole life.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._runner = asyncio.Runner()

    def __call__(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._settle(attrgetter(method)(self.client)(*arguments, **options))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._settle(self.client.close())
        self._runner.close()

    def _settle(self, found: Any) -> Any:
        if isinstance(found, AsyncIterable):
            return self._runner.run(_collected(found))
        if isinstance(found, Awaitable):
            return self._settle(self._runner.run(_awaited(found)))
        return list(found) if isinstance(found, Iterator) else found


async def _collected(stream: AsyncIterable[Any]) -> list[Any]:
    return [part async for part in stream]


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found
