"""What lies on the disk and is not of this version: `warnings` of /health tell of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from mlxd.core.clock import Clock
from mlxd.core.threads import NoThread, Threads

_EVERY_SECONDS = 1.0
_PATIENCE_SECONDS = 0.2
"""A disk that hangs keeps nobody from an answer."""


class Unread:
    """`look` may block: it is called once here, at the start, and then in a thread, when somebody
    asks and it is a while ago.
    """

    def __init__(self, look: Callable[[], list[str]], threads: Threads, clock: Clock) -> None:
        self.words = look()
        """For people, as it was at the last look."""
        self._look = look
        self._threads = threads
        self._clock = clock
        self._looked = clock.monotonic()
        self._looking: asyncio.Future[list[str]] | None = None

    async def refresh(self) -> None:
        """Have `words` be of now, if that can be had soon."""
        if self._looking is None and self._clock.monotonic() - self._looked >= _EVERY_SECONDS:
            self._looked = self._clock.monotonic()
            with contextlib.suppress(NoThread):
                self._looking = self._threads.run(self._look)
                self._looking.add_done_callback(self._seen)
        if self._looking is not None:
            await asyncio.wait([self._looking], timeout=_PATIENCE_SECONDS)

    def _seen(self, looking: asyncio.Future[list[str]]) -> None:
        self._looking = None
        if not looking.cancelled() and looking.exception() is None:
            self.words = looking.result()
