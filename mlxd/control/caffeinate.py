"""`caffeinate` beside the daemon: macOS does not fall asleep by itself in the middle of work.

Never with `-d`: a display that is on, and a GPU that is busy, can trip the system's GPU watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Literal

from mlxd.core.clock import LOOKS, Clock

log = logging.getLogger(__name__)

_LINGERS = 5.0
"""Seconds without work after which it ends: pauses between two requests start no process each."""
_AGAIN = 60.0
"""Seconds from one start to the next after it died by itself, or was not to be had."""

When = Literal["while_active", "always", "never"]


class Caffeinate:
    """One process at most. It ends with the daemon, whatever the daemon dies of (`-w`)."""

    def __init__(
        self,
        clock: Clock,
        when: Callable[[], When],
        active: Callable[[], bool],
        *,
        program: str = "caffeinate",
        platform: str = sys.platform,
        lingers: float = _LINGERS,
    ) -> None:
        """`when` and `active` are asked at each look. Does nothing but on macOS."""
        self._clock = clock
        self._when = when
        self._active = active
        self._program = program
        self._of_use = platform == "darwin"
        self._lingers = lingers
        self._process: asyncio.subprocess.Process | None = None
        self._active_at = -lingers
        self._not_before = 0.0
        self._warned = False

    async def run(self) -> None:
        """Look for as long as the daemon lives; ends the process when it is cancelled."""
        if not self._of_use:
            return
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOKS)
        finally:
            self._end()

    async def look(self) -> None:
        """Start it or end it, as policy and work have it now."""
        if not self._wanted():
            self._end()
        elif self._process is None:
            if self._clock.monotonic() >= self._not_before:
                await self._start()
        elif self._process.returncode is not None:
            log.warning("%s ended by itself (%s)", self._program, self._process.returncode)
            self._process = None

    def _wanted(self) -> bool:
        when, now = self._when(), self._clock.monotonic()
        if self._active():
            self._active_at = now
        return when == "always" or (
            when == "while_active" and now - self._active_at < self._lingers
        )

    async def _start(self) -> None:
        self._not_before = self._clock.monotonic() + _AGAIN
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(self._program, "-i", "-w", str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the daemon, which may have work to end
            )
        except OSError as error:
            if not self._warned:
                log.warning("the machine may fall asleep: no %s: %s", self._program, error)
            self._warned = True

    def _end(self) -> None:
        """What is ended on purpose may be started again at once."""
        if self._process is not None:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                self._not_before = 0.0
            self._process = None
