"""The engine processes that are kept ready for the next load, and how a load gets one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from mlxd.control.changes import Changes
from mlxd.control.process import KILLED_SECONDS, UNKNOWN, Known, launch_of
from mlxd.control.process_limit import resident_of
from mlxd.control.spare import Spare
from mlxd.control.stock import Stock, wanted
from mlxd.control.watermarks import Level
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import MlxdError
from mlxd.core.models import ModelSpec
from mlxd.core.tasks import tell_defect
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""Within which a spare says that it has heard its launch; a healthy one needs a millisecond."""
WARM_SECONDS = 120.0
"""Within which one has imported everything, on the slowest of disks."""
_LOOK_SECONDS = 30.0
"""Until another look where nothing is due: memory may have become another."""
_CLEARING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Kept:
    """One spare as it is shown."""

    pid: int
    warm: bool
    bytes: int
    """That its process holds."""


class Spares:
    """Keeps as many as policy wants and memory allows, in the background; gives one to a load."""

    def __init__(
        self,
        temporary: Path,
        clock: Clock,
        policies: PolicySet,
        *,
        total: Callable[[], int | None],
        level: Callable[[], Level] = lambda: Level.NORMAL,
        held: Callable[[], bool] = lambda: False,
        start: Callable[[Path, Clock], Awaitable[Spare]] = Spare.start,
    ) -> None:
        """`total`: bytes of memory that there are; `held`: nothing is to be started at all."""
        self.level = level
        self.held = held
        self.taken = 0
        """Loads that were given one."""
        self.fresh = 0
        """Loads that were not."""
        self._temporary = temporary
        self._clock = clock
        self._policies = policies
        self._total = total
        self._start = start
        self._stock = Stock(clock.monotonic())
        self._changes = Changes()
        self._spares: list[Spare] = []
        self._closed = False
        self._loads: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.Task[None]] = set()

    def apply(self, new: PolicySet) -> None:
        """As many as `new` wants, from now on."""
        self._policies = new
        self.look()

    def look(self) -> None:
        """Memory is at another level, or something else has changed."""
        self._changes.tell()

    def kept(self) -> list[Kept]:
        """Those that are there."""
        return [
            Kept(spare.pid, spare.warm, resident_of(spare.pid) or 0)
            for spare in self._spares
            if spare.alive
        ]

    def pids(self) -> list[int]:
        """Of their processes."""
        return [spare.pid for spare in self._spares]

    @property
    def fit(self) -> bool:
        """Whether one would take a load now."""
        return any(spare.fit for spare in self._spares)

    async def spawn(
        self,
        spec: ModelSpec,
        name: str,
        clock: Clock,
        *,
        temporary: Path,
        budget: ipc.Budget | None = None,
        known: Known = UNKNOWN,
    ) -> Worker:
        """As `Worker.spawn`, with the process of a spare where one is fit."""
        self._stock.load_begins()
        try:
            spare = self._take()
            launch = launch_of(spec, temporary, budget, known)
            if spare is not None and await self._takes(spare, launch):
                worker = Worker.of(spare, spec, name, clock, budget)
                worker.spare = True
                self.taken += 1
            else:
                worker = await Worker.spawn(
                    spec, name, clock, temporary=temporary, budget=budget, known=known
                )
                self.fresh += 1
        except BaseException:
            self._load_over()
            raise
        self._own(self._outlast(worker), f"load of {name}", self._loads)
        return worker

    async def run(self) -> None:
        """Keep them, for the life of the daemon."""
        while not self._closed:
            self._count()
            missing = self._missing()
            self._give_back(-missing)
            now, policy = self._clock.monotonic(), self._policies.supervision.worker
            cold = any(not spare.warm for spare in self._spares)
            at = self._stock.next_start(0 if cold else missing, now, policy)
            if at <= now:
                await self._start_one()
            else:
                await self._changes.wait(min(_LOOK_SECONDS, at - now))

    def end(self) -> None:
        """Keep none from now on."""
        self._closed = True
        self._changes.tell()
        self._give_back(len(self._spares))

    async def close(self) -> None:
        """As `end`; returns when nothing is left of them."""
        self.end()
        await asyncio.gather(*self._ends)

    # -- keeping them

    def _missing(self) -> int:
        """Below 0: there are too many."""
        policy = self._policies.supervision.worker.spares
        few = 0 if self.held() else wanted(policy, self._total(), self.level())
        return few - len(self._spares)

    def _count(self) -> None:
        """Without those that are gone, or should long be warm."""
        for spare in [*self._spares]:
            late = not spare.warm and self._clock.monotonic() - spare.began > WARM_SECONDS
            if late or not spare.alive:
                self._spares.remove(spare)
                self._failed(spare, "did not get ready" if late else "ended")

    def _give_back(self, many: int) -> None:
        """The youngest first: they may not even be warm."""
        for _ in range(many):
            self._end(self._spares.pop())

    def _end(self, spare: Spare) -> None:
        spare.kill()
        self._own(_gone(spare), f"end of spare {spare.pid}", self._ends)

    async def _start_one(self) -> None:
        now, policy = self._clock.monotonic(), self._policies.supervision.worker
        self._stock.starts(now, policy)
        try:
            spare = await self._start(self._temporary, self._clock)
        except OSError as error:
            log.warning("no spare engine process could be started: %s", error.strerror or error)
            self._stock.failed(self._clock.monotonic(), policy)
            return
        if self._closed:
            self._end(spare)
            return
        spare.on_change = lambda: self._changed(spare)
        self._spares.append(spare)

    def _changed(self, spare: Spare) -> None:
        if spare.alive and spare.warm:
            self._stock.warm()
        self._changes.tell()

    def _failed(self, spare: Spare, why: str) -> None:
        self._end(spare)
        self._stock.failed(self._clock.monotonic(), self._policies.supervision.worker)
        last = spare.process.stderr.strip().rpartition("\n")[2]
        words = f"; its last words: {last}" if last else ""
        log.warning("spare engine process %s %s%s", spare.pid, why, words)

    # -- giving one away

    def _take(self) -> Spare | None:
        """The oldest that is fit. One that never will be again is ended."""
        for spare in [*self._spares]:
            if spare.fit:
                self._spares.remove(spare)
                return spare
            if spare.alive and spare.warm:
                log.info("spare engine process %s is out of date: it is ended", spare.pid)
                self._spares.remove(spare)
                self._end(spare)
        return None

    async def _takes(self, spare: Spare, launch: ipc.Launch) -> bool:
        """Whether it has heard what it is to load; if not it is killed."""
        try:
            await spare.launch(launch)
            heard = await spare.answers(ANSWER_SECONDS)
        except BaseException:  # nobody else knows of it
            self._end(spare)
            raise
        if not heard:
            self._failed(spare, "does not answer")
        return heard

    async def _outlast(self, worker: Worker) -> None:
        """Until its load is over, well or not."""
        try:
            await worker.until_ready()
        except MlxdError:
            pass
        finally:
            self._load_over()

    def _load_over(self) -> None:
        self._stock.load_ended(self._clock.monotonic())
        self._changes.tell()

    def _own(
        self, work: Coroutine[None, None, None], name: str, tasks: set[asyncio.Task[None]]
    ) -> None:
        task = asyncio.create_task(work, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(tell_defect)


async def _gone(spare: Spare) -> None:
    """One that was killed, with what it leaves on disk; not for ever."""
    if await spare.process.gone(KILLED_SECONDS):
        await spare.process.cleared(_CLEARING_SECONDS)
