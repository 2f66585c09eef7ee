"""Has generations kept; those that a disk does not take wait until it does."""

from __future__ import annotations

import asyncio
import logging

from mlxd.core.clock import Clock
from mlxd.core.threads import Threads
from mlxd.policy.history import KEPT, Generation, History

log = logging.getLogger(__name__)

AGAIN_SECONDS = 30.0
"""Until another attempt, where the last one failed."""
_LONGEST_SECONDS = 10.0
"""A state folder that does not answer for this long hangs."""


class Remembering:
    """Used by one task at a time."""

    def __init__(self, history: History, clock: Clock, threads: Threads) -> None:
        self.failure = ""
        """Why a generation is not kept; empty: all are."""
        self._history = history
        self._clock = clock
        self._threads = threads
        self._unkept: dict[int, Generation] = {}
        self._recording: asyncio.Future[None] | None = None
        self._not_before = 0.0

    async def remember(self, generation: Generation) -> None:
        """Keep it, and what could not be kept before."""
        known = self._unkept.pop(generation.number, None)
        self._unkept[generation.number] = generation.after(known)
        for old in list(self._unkept)[:-KEPT]:
            del self._unkept[old]
        await self._keep()

    async def try_again(self) -> None:
        """Keep what could not be kept, if another attempt is due."""
        if self._unkept and self._clock.monotonic() >= self._not_before:
            await self._keep()

    async def _keep(self) -> None:
        failure = ""
        for generation in [*self._unkept.values()]:
            if reason := await self._reason_not_kept(generation):
                failure = f"generation {generation.number} could not be kept: {reason}"
            else:
                del self._unkept[generation.number]
        if failure and failure != self.failure:
            log.warning("%s", failure)
        self.failure = failure
        self._not_before = self._clock.monotonic() + AGAIN_SECONDS

    async def _reason_not_kept(self, generation: Generation) -> str:
        """Empty: it is. A disk that hangs holds one thread."""
        if self._recording is not None and not self._recording.done():
            return "the state folder does not answer"
        try:
            self._recording = self._threads.run(self._history.record, generation)
            self._recording.add_done_callback(_heard)
            async with asyncio.timeout(_LONGEST_SECONDS):
                await asyncio.shield(self._recording)
        except TimeoutError:
            return "the state folder does not answer"
        except OSError as error:
            return error.strerror or str(error)
        except (RuntimeError, ValueError) as error:
            return str(error)
        return ""


def _heard(recording: asyncio.Future[None]) -> None:
    """Its error, too, where nobody has waited for it."""
    if not recording.cancelled():
        recording.exception()
