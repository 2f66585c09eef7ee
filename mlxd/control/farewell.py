"""What a worker is waited for, and killed for, after a generation that was left before its end.

The worker has been told to cancel it, and says between two steps that it holds nothing of it any
more. A step may be long; a worker that is wedged is told from that by its pings.
"""

from __future__ import annotations

import logging
from typing import Protocol

from mlxd.control.generation import LATE_SECONDS, Generation, Pulse
from mlxd.control.process import KILLED_SECONDS
from mlxd.core.clock import Clock

log = logging.getLogger(__name__)


class Peer(Protocol):
    """The worker, as far as a farewell looks at it."""

    name: str

    @property
    def alive(self) -> bool: ...

    @property
    def condemned(self) -> bool: ...


class Farewell:
    """One worker's way of letting generations go. It ends the worker through its `Pulse`."""

    def __init__(self, worker: Peer, clock: Clock, pulse: Pulse) -> None:
        self._worker = worker
        self._clock = clock
        self._pulse = pulse

    async def take(self, generation: Generation) -> None:
        """Wait for the worker's word for `cancel_ack`; kill one that was silent for too long
        already.
        """
        limits, asked = generation.limits, self._clock.monotonic()
        if await generation.until_ended(limits.cancel_ack):
            return
        silent = generation.stalled and self._pulse.at < generation.broken_at
        if self._counts(asked + limits.cancel_ack) and silent:
            log.error("worker %s stalled and hears no cancel: killed", self._worker.name)
            self._pulse.condemn("stalled")
        if self._worker.condemned:
            await generation.until_ended(KILLED_SECONDS)

    async def outlast(self, generation: Generation) -> None:
        """Tell a long step from a wedge: it answers pings, and ends within the stall limit."""
        limits = generation.limits
        while not generation.ended and self._worker.alive:
            asked = self._clock.monotonic()
            since = max(self._pulse.at, self._pulse.forgiven, generation.created)
            if asked - since >= limits.inter_token:
                log.error("worker %s makes no step and hears no cancel: killed", self._worker.name)
                self._pulse.condemn("stalled")
                return
            self._pulse.ask()
            if await generation.until_ended(limits.cancel_ack):
                return
            counts = self._counts(asked + limits.cancel_ack)
            if counts and max(self._pulse.heard, self._pulse.forgiven) < asked:
                log.error("worker %s answers neither cancel nor ping: killed", self._worker.name)
                self._pulse.condemn("unresponsive")

    def _counts(self, due: float) -> bool:
        """Whether a silence up to `due` says something: the daemon listened, and the machine had
        not just slept.
        """
        now = self._clock.monotonic()
        if now - due <= LATE_SECONDS and not self._pulse.calm():
            return True
        self._pulse.forgiven = max(now, self._pulse.forgiven)
        return False
