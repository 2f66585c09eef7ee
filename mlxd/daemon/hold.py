"""No model is loaded while the start ledger says that the daemon ends too soon, too often."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from mlxd.control.preload import Preloader
from mlxd.core.clock import SystemClock
from mlxd.core.errors import StartsHeld
from mlxd.core.starts import StartLedger
from mlxd.core.threads import Threads
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import PolicyStore
from mlxd.telemetry.events import Events

log = logging.getLogger(__name__)

_RETRY_SECONDS = 60.0
_LOOK_SECONDS = 60.0
"""At least so often: no timer runs while the machine sleeps."""
_NOTE_SECONDS = 1.0
"""For a word on the disk at the end; a disk may hang."""


def begun(policies: PolicySet, state: Path) -> StartLedger:
    """The ledger with this run in it, even if that cannot be written down."""
    starts = StartLedger(state, SystemClock(), policies.supervision.daemon.max_restarts)
    try:
        starts.begin()
    except OSError as error:
        log.warning("starts cannot be written down: %s", error)
    return starts


class Hold:
    """Stands before each load; what becomes of the ledger is told and written down here."""

    def __init__(
        self,
        starts: StartLedger,
        policies: PolicyStore,
        preloader: Preloader,
        *,
        look: Callable[[], Awaitable[None]],
        events: Events,
        threads: Threads,
    ) -> None:
        """`look`: what else stands before a load, asked where the ledger holds none."""
        self._starts = starts
        self._policies = policies
        self._preloader = preloader
        self._look = look
        self._events = events
        self._threads = threads

    async def before_load(self) -> None:
        """Raises StartsHeld, and what `look` raises."""
        if self._starts.held:
            raise StartsHeld(
                self._starts.reason,
                retry_after=_RETRY_SECONDS,
                policy=self._policies.current.line("supervision.daemon.max_restarts"),
                would_pass="the same request after `mlxd service reset`, or an hour without another"
                " unclean start",
            )
        await self._look()

    async def follow(self) -> None:
        """Note that this run has lived for long enough, and the end of a hold."""
        if self._starts.held:
            log.critical("%s", self._starts.reason)
            self._events.record("starts_held", self._starts.reason)
        while (seconds := self._starts.due()) is not None:
            await asyncio.sleep(min(seconds, _LOOK_SECONDS))
            before = self._starts.starts
            if self._starts.advance():
                self._release("an hour has passed without another unclean start")
            if self._starts.starts != before:
                await self._note()

    async def reset(self) -> bool:
        """Whether that ended a hold."""
        if held := self._starts.reset():
            self._release("it was reset")
        await self._note()
        return held

    async def asked_to_end(self) -> None:
        """This run is no crash, whatever comes next."""
        self._starts.asked_to_end()
        await self._note()

    def _release(self, why: str) -> None:
        words = f"models are loaded again: {why}"
        self._events.record("starts_released", words)
        self._preloader.apply(self._policies.current)

    async def _note(self) -> None:
        try:
            async with asyncio.timeout(_NOTE_SECONDS):
                await self._threads.run(self._starts.save)
        except (OSError, TimeoutError) as error:
            log.warning("starts cannot be written down: %s", str(error) or "the disk hangs")
