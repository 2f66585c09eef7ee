"""Lends workers memory for beginnings of prompts, and has it given back before anybody has to leave
memory for want of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import replace

from mlxd.control.inventory import Inventory
from mlxd.control.resident import Resident
from mlxd.core.clock import Clock
from mlxd.core.models import ModelSpec
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 0.002, 0.05
"""Between two looks whether it is given back: most workers do so between two steps."""


class Lender:
    """Does what lending.py decides."""

    def __init__(
        self,
        inventory: Inventory,
        clock: Clock,
        in_force: Callable[[], PolicySet],
        closing: Callable[[], bool],
    ) -> None:
        self._inventory = inventory
        self._clock = clock
        self._in_force = in_force
        self._closing = closing
        self._left = 1.0
        """The part that memory's marks leave of what would be lent."""
        self._beside = 0
        """Bytes that way is made for."""
        self._deaf: set[ModelSpec] = set()
        """Those that were waited for in vain, as long as they do not give back."""

    def lend(self, left: float | None = None) -> None:
        """Lend what is free now, or a part of it; from now on that part."""
        if left is not None:
            self._left = left
        for spec, size in self._loans().items():
            self._set(self._inventory.residents[spec], size)

    async def make_way(self, needed: int) -> None:
        """See that so much can be promised beside what is lent then. Nobody else is lent it again
        meanwhile.
        """
        self._beside = needed
        try:
            for spec, size in self._loans().items():
                resident = self._inventory.residents[spec]
                self._set(resident, min(size, resident.budget.prefix_bytes))
            await self.given_back()
        finally:
            self._beside = 0

    async def given_back(self) -> None:
        """Wait until nobody holds more than he is lent, not for ever: whoever does, in a long step,
        is not counted on, nor waited for a second time.
        """
        limit = float(self._in_force().memory.eviction.verify_reclaim)
        until, pause = self._clock.monotonic() + limit, _FIRST_LOOK_SECONDS
        await asyncio.sleep(0)
        while (late := self._late()) and not self._closing():
            if self._clock.monotonic() >= until:
                names = ", ".join(resident.card.name for resident in late)
                log.warning("%s did not give back what was lent within %g s", names, limit)
                self._deaf.update(resident.spec for resident in late)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)

    def _loans(self) -> dict[ModelSpec, int]:
        return self._inventory.loans(self._in_force(), self._left, self._beside)

    def _late(self) -> list[Resident]:
        overdue = [r for r in self._inventory.borrowers() if self._inventory.account(r).overdue]
        self._deaf.intersection_update([resident.spec for resident in overdue])
        return [resident for resident in overdue if resident.spec not in self._deaf]

    def _set(self, resident: Resident, size: int) -> None:
        worker = self._inventory.worker_of(resident)
        if worker is not None and size != resident.budget.prefix_bytes:
            resident.budget = replace(resident.budget, prefix_bytes=size)
            worker.set_budget(resident.budget)
