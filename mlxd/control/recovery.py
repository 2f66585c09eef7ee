"""Starts what nobody asks for: the probes of open breakers, and preloaded or pinned models that
were lost. Sleeps until the next of them is due.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine

from mlxd.control.breaker import State
from mlxd.control.residency import Residency
from mlxd.control.resident import Evicts
from mlxd.control.slot import Slot
from mlxd.control.supervisor import Supervisor
from mlxd.core.clock import Clock
from mlxd.core.errors import MlxdError
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

_LONG_SECONDS = 3600.0
"""Of sleep, when nothing is due: what changes wakes it."""


class Recovery:
    """One start at a time for each slot; who else waits for it shares it."""

    def __init__(
        self,
        supervisor: Supervisor,
        residency: Residency,
        clock: Clock,
        policies: Callable[[], PolicySet],
        keeps: Callable[[ModelCard], bool],
    ) -> None:
        """`keeps` says which models are to be in memory always."""
        self._supervisor = supervisor
        self._residency = residency
        self._clock = clock
        self._policies = policies
        self._keeps = keeps
        self._tasks: dict[ModelSpec, asyncio.Task[None]] = {}
        self._not_before: dict[ModelSpec, float] = {}
        """Of models that could not be started for another reason than their own."""

    async def run(self) -> None:
        """For the life of the daemon."""
        while True:
            self._supervisor.look()
            now = self._clock.monotonic()
            for slot in self._supervisor.slots():
                if slot.spec not in self._tasks and self._due(slot) <= now:
                    probes = slot.state is State.OPEN
                    self._own(slot, self._probe(slot) if probes else self._restart(slot))
            await self._supervisor.changes.wait(self._pause())

    async def close(self) -> None:
        """Start nothing any more; to be called before the residency is closed."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _due(self, slot: Slot) -> float:
        """When something is to be done for a slot; inf: nothing."""
        match slot.state:
            case State.OPEN:
                return slot.next_start or -math.inf
            case State.IDLE | State.BACKING_OFF if slot.lost and self._keeps(slot.card):
                at = slot.next_start or -math.inf
                return max(at, self._not_before.get(slot.spec, -math.inf))
        return math.inf

    def _pause(self) -> float:
        """Seconds until something is due, or a quarantine ends."""
        now = self._clock.monotonic()
        slots = [slot for slot in self._supervisor.slots() if slot.spec not in self._tasks]
        times = [self._due(slot) for slot in slots]
        times += [slot.until for slot in slots if slot.until is not None]
        return max(0.0, min(_LONG_SECONDS, min(times, default=math.inf) - now))

    async def _probe(self, slot: Slot) -> None:
        """Nobody leaves memory for it; where there is no room, it was none."""
        self._supervisor.probe(slot)
        try:
            await self._residency.load(slot.card, self._policies(), Evicts.NOBODY)
        except MlxdError as error:
            log.info("the probe of %s: %s", slot.name, error)
        finally:
            self._supervisor.end_probe(slot)

    async def _restart(self, slot: Slot) -> None:
        policies = self._policies()
        later = float(policies.memory.check_interval)
        self._not_before[slot.spec] = self._clock.monotonic() + later
        try:
            await self._residency.load(slot.card, policies, Evicts.UNLISTED)
        except MlxdError as error:
            log.info("%s is not started again yet: %s", slot.name, error)
        if slot.state is not State.IDLE:  # it serves, or its own failure says when
            self._not_before.pop(slot.spec, None)

    def _own(self, slot: Slot, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"recovery of {slot.name}")
        self._tasks[slot.spec] = task

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[slot.spec]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s could not be started: a defect", slot.name, exc_info=error)
            self._supervisor.changes.tell()

        task.add_done_callback(ended)
