"""Whether workers are well: each is asked now and then, and one that misses too often is ended.

A worker that loads is not asked: `timeouts.model_load` bounds that, and one that is stopped
meanwhile is ended by who waits for it (Worker.until_ready). One whose process ends is noticed by
its end, at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from mlxd.control.changes import Changes
from mlxd.control.exit import Verdict
from mlxd.control.slot import Slot
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock, within
from mlxd.core.counts import plural
from mlxd.core.errors import InsufficientMemory, MlxdError
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.supervision import Health

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Record:
    """What is known of one worker's checks."""

    misses: int = 0
    """In a row."""
    step: int = -1
    """Of its engine, at the check before, where that found it busy."""
    under_way: bool = False
    """A check goes on."""


class Vitals:
    """One round for all workers, side by side, every `supervision.worker.health.interval`.

    No round waits for the one before: a worker whose check goes on is passed over.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        policies: PolicySet,
        calm: Callable[[], bool],
    ) -> None:
        """`calm` is true while no worker may count as stalled, such as after the machine slept."""
        self._supervisor = supervisor
        self._clock = clock
        self._policies = policies
        self._calm = calm
        self._edited = Changes()
        self._records: dict[Worker, Record] = {}
        self._last = clock.monotonic()

    def apply(self, new: PolicySet) -> None:
        """The next round follows `new`, and comes when it says."""
        self._policies = new
        self._edited.tell()

    async def run(self) -> None:
        """For the life of the daemon."""
        async with asyncio.TaskGroup() as rounds:
            while True:
                self._last = self._clock.monotonic()
                rounds.create_task(self.look())
                while (left := self._left()) > 0:
                    await self._edited.wait(left)

    async def look(self) -> None:
        """One round."""
        serving = self._serving()
        self._records = {worker: self._records.get(worker, Record()) for _, worker in serving}
        await asyncio.gather(
            *(
                self._check(slot, worker, record)
                for slot, worker in serving
                if not (record := self._records[worker]).under_way
            )
        )

    async def wake(self) -> None:
        """The machine has slept: each idle worker is to make a token, and is ended if it cannot."""
        await asyncio.gather(*(self._awake(worker) for _, worker in self._serving()))

    @property
    def overdue(self) -> bool:
        """The next round should long have begun: nobody looks after the workers."""
        health = self._policies.supervision.worker.health
        patience = 2 * float(health.interval) + float(health.timeout)
        return self._clock.monotonic() - self._last > patience

    def _left(self) -> float:
        interval = float(self._policies.supervision.worker.health.interval)
        return self._last + interval - self._clock.monotonic()

    def _serving(self) -> list[tuple[Slot, Worker]]:
        """Those that can be asked: no loading ones."""
        found = ((slot, slot.serving) for slot in self._supervisor.slots())
        return [(slot, worker) for slot, worker in found if worker is not None]

    async def _check(self, slot: Slot, worker: Worker, record: Record) -> None:
        health = self._policies.supervision.worker.health
        record.under_way = True
        try:
            verdict = await self._verdict(worker, record, health)
        finally:
            record.under_way = False
        if not worker.alive or self._calm():
            return
        record.misses = record.misses + 1 if verdict is not None else 0
        if verdict is not None and record.misses >= health.failures_down:
            log.error(
                "worker %s is %s at %s: killed", slot.name, verdict, plural(record.misses, "check")
            )
            worker.condemn(verdict)

    async def _awake(self, worker: Worker) -> None:
        if worker.running:
            return
        limit = float(self._policies.timeouts.first_token)
        if await self._try(worker, limit) is not None and worker.alive:
            worker.condemn("canary")

    async def _verdict(self, worker: Worker, record: Record, health: Health) -> Verdict | None:
        """What is wrong with it now; None: nothing."""
        if health.probe == "token" and worker.running == 0:
            return await self._try(worker, float(health.timeout))
        pong = await worker.ping(float(health.timeout))
        if pong is None:
            return "unresponsive"
        stands_still = pong.running > 0 and pong.step == record.step
        record.step = pong.step if pong.running else -1
        return "stalled" if stands_still else None

    async def _try(self, worker: Worker, timeout: float) -> Verdict | None:
        """Have it make a token; that it finds no memory for one says nothing against it."""
        try:
            async with within(self._clock, timeout):
                await worker.canary(timeout, float(self._policies.timeouts.inter_token_stall))
        except (MlxdError, TimeoutError) as error:
            if worker.alive and isinstance(error.__cause__, InsufficientMemory):
                return None
            log.warning("worker %s makes no token: %s", worker.name, error)
            return "unresponsive"
        return None
