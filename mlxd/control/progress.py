"""How far something is, for any number of watchers, each at a pace of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from mlxd.core.errors import MlxdError


@dataclass(frozen=True, slots=True)
class Progress:
    """One line of it, as Ollama has it. Of those with one status and digest the last counts."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


class Board:
    """The lines so far, until it is closed. A slow watcher misses what is out of date by then."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], tuple[int, Progress]] = {}
        """In the order of their last change, each with its number."""
        self._number = 0
        self._closed = False
        self._error: MlxdError | None = None
        self._news = asyncio.Event()

    def post(self, line: Progress) -> None:
        key = (line.status, line.digest)
        self._number += 1
        self._lines.pop(key, None)
        self._lines[key] = (self._number, line)
        self._wake()

    def close(self, error: MlxdError | None = None) -> None:
        """No line follows; watchers end, with `error` if it failed."""
        self._closed = True
        self._error = error
        self._wake()

    async def watch(self) -> AsyncIterator[Progress]:
        """What is there, then what comes. Raises what it was closed with."""
        seen = 0
        while True:
            news = self._news
            for number, line in [*self._lines.values()]:
                if number > seen:
                    seen = number
                    yield line
            if self._number > seen:
                continue
            if self._closed:
                break
            await news.wait()
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
