"""Follows memory without any request: reads it, enters and leaves marks, has their actions done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from mlxd.control.measures import (
    EVICTING,
    HOLDING,
    Counts,
    Gate,
    Measures,
    Models,
    Occasion,
    in_words,
)
from mlxd.control.monitors import Monitors, Readings, in_gib
from mlxd.control.pressure import Sustained
from mlxd.control.process_limit import Oversized, oversized, resident_of
from mlxd.control.watermarks import Level, Mark, Waterline, marks_of
from mlxd.core.clock import Clock
from mlxd.core.errors import MlxdError, PolicyLine
from mlxd.policy.policy_set import PolicySet
from mlxd.telemetry.events import Events

log = logging.getLogger(__name__)

_SOON_SECONDS = 0.001
_AGAIN_SECONDS = 1.0
"""The least time until another look after one that failed."""


class Guard:
    """One per daemon: looks at memory from `start` to `close`."""

    def __init__(
        self,
        policies: PolicySet,
        monitors: Monitors,
        models: Models,
        gate: Gate,
        *,
        clock: Clock,
        events: Events,
        counts: Counts,
        resident_of: Callable[[int], int | None] = resident_of,
    ) -> None:
        self.on_level: Callable[[], object] | None = None
        """Called when memory is at another level than before."""
        self.on_look: Callable[[], object] | None = None
        """Called at every look at memory."""
        self._policies = policies
        self._marks = marks_of(policies.memory)
        self._monitors = monitors
        self._models = models
        self._clock = clock
        self._events = events
        self._resident_of = resident_of
        self._measures = Measures(models, gate, events, counts)
        self._counts = counts
        self._waterline = Waterline()
        self._sustained = Sustained()
        self._readings = Readings(None)
        self._pressure = Level.NORMAL
        self._told = Level.NORMAL
        """The last level that was told of."""
        self._alarms: list[str] = []
        """Why it is an emergency whatever readings say, until all that it asks for is done."""
        self._acting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def level(self) -> Level:
        """The highest mark that holds, by readings or by an alarm."""
        return Level.EMERGENCY if self._alarms else self._waterline.level

    @property
    def line(self) -> PolicyLine | None:
        """Of the highest mark that was entered; None: of none."""
        entered = self._entered()
        return self._policies.line(entered[-1].key) if entered else None

    @property
    def pressure(self) -> Level:
        """As the system names it, once it has lasted."""
        return self._pressure

    @property
    def lasting(self) -> frozenset[str]:
        """Actions that are in effect until their mark is left."""
        return self._measures.held

    def read(self) -> Readings:
        """Memory now. Changes nothing."""
        return self._monitors.read(self._policies.memory.monitors)

    def warnings(self) -> list[str]:
        """What is being done and why, as of the last look at memory."""
        entered = self._entered()
        told = self._measures.held or any("warn" in mark.actions for mark in entered)
        if not entered or not told:
            return []
        mark = entered[-1]
        lasting = [a for one in entered[:-1] for a in one.actions if a in self._measures.held]
        doing = in_words([*lasting, *mark.actions]) or "nothing is done"
        return [f"{self._words()}: {doing} ({self._policies.line(mark.key)})"]

    def apply(self, new: PolicySet) -> None:
        """Work by `new` from now on: memory is looked at again at once."""
        self._policies = new
        self._marks = marks_of(new.memory)
        self._wake.set()

    def refresh(self, same: PolicySet) -> None:
        """The same values in other places: what is told from now on names those."""
        self._policies = same
        self._wake.set()

    def start(self, ended: Callable[[asyncio.Task[None]], None] | None = None) -> None:
        """Look from now on. `ended` is told of the task's end: before `close`, that is a defect."""
        self._task = asyncio.create_task(self.run(), name="memory guard")
        if ended is not None:
            self._task.add_done_callback(ended)

    async def close(self) -> None:
        """Look no more; an eviction under way is hastened, not left half done."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> None:
        """Look every `memory.check_interval`, and at once when there is a reason to."""
        while True:
            done = await self._check_safely()
            await self._pause(_SOON_SECONDS if done else _AGAIN_SECONDS)

    async def check(self) -> None:
        """One look, and what follows from it; after an eviction memory is read again."""
        async with self._acting:
            self._wake.clear()
            alarms = len(self._alarms)
            self._end_oversized()
            self._observe()
            if self.on_look is not None:
                self.on_look()
            try:
                await self._act(self._marks)
            finally:
                del self._alarms[:alarms]
            if alarms:
                self._observe()

    async def before_load(self) -> None:
        """Loads are blocked from this moment on if memory says so; the rest is left to `run`, so
        that a load may ask for this wherever it stands, and never waits for an eviction.
        """
        before = self.level
        self._observe()
        if self.level > before:
            self._hold({"block_loads"})
            self._wake.set()

    def emergency(self, why: str) -> None:
        """Somebody ran out of memory, whatever readings say: what can be refused is refused at
        once, and `run` does the rest without waiting for a look. Then readings decide again.
        """
        self._alarms.append(why)
        self._events.record("memory_emergency", why)
        self._readings = self.read()
        self._tell()
        self._hold(HOLDING)
        self._wake.set()

    def out_of_memory(self, model: str) -> None:
        """The engine of a model ended for want of memory."""
        self.emergency(f"the engine of '{model}' ran out of memory")

    # -- looking

    async def _check_safely(self) -> bool:
        """Whether all was done that memory asks for."""
        try:
            await self.check()
        except (MlxdError, OSError) as error:  # of an eviction
            log.error("what memory asks for was not done: %s", error)
        except Exception:  # the edge: memory is watched as long as the daemon lives
            log.exception("what memory asks for was not done: a defect")
        else:
            return True
        return False

    def _observe(self) -> None:
        now = self._clock.monotonic()
        self._readings = self.read()
        self._pressure = self._sustained.observe(self._readings.pressure, now)
        self._waterline.observe(self._marks, self._readings.share, self._pressure, now)
        self._tell()
        self._measures.follow((a for mark in self._entered() for a in mark.actions), self.level)

    def _tell(self) -> None:
        """Of another level, once."""
        before, level = self._told, self.level
        if level == before:
            return
        self._told = level
        words = f"memory: {before.word} -> {level.word}: {self._words()}"
        shares = {name: round(share, 4) for name, share in self._readings.each().items()}
        data = {"from": before.word, "to": level.word, "monitors": shares}
        warns = level > before and any("warn" in mark.actions for mark in self._entered())
        self._events.record(
            "pressure", words, data, level=logging.WARNING if warns else logging.INFO
        )
        if warns:
            self._counts.memory_action("warn")
        if self.on_level is not None:
            self.on_level()

    def _words(self) -> str:
        return "; ".join([*self._alarms[-1:], str(self._readings)])

    async def _pause(self, least: float) -> None:
        """Until the next look is due, after `least` seconds at the soonest, or there is a reason
        for one.
        """
        interval = float(self._policies.memory.check_interval)
        due = max(least, self._waterline.due(self._marks, self._clock.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(interval, due)):
                await self._wake.wait()

    # -- acting

    def _entered(self) -> list[Mark]:
        return [mark for mark in self._marks if mark.level <= self.level]

    async def _act(self, marks: Sequence[Mark]) -> None:
        """The actions of all marks that hold, from the lowest on; of one that is left meanwhile,
        because an eviction helped, no more.
        """
        for mark in marks:
            for action in mark.actions:
                if mark.level > self.level:
                    return
                await self._measures.perform(action, self._occasion(mark))
                if action in EVICTING:
                    self._observe()

    def _hold(self, actions: frozenset[str] | set[str]) -> None:
        """Those of them that marks in force ask for, at once."""
        for mark in self._entered():
            for action in mark.actions:
                if action in actions:
                    self._measures.hold(action, self._occasion(mark))

    def _occasion(self, mark: Mark) -> Occasion:
        return Occasion(
            mark=mark,
            level=self.level,
            share=self._readings.share,
            words=self._words(),
            line=self._policies.line(mark.key),
            retry_after=float(self._policies.memory.check_interval),
            pressing=not mark.cleared(self._readings.share, self._pressure),
            enough=self._enough(mark),
        )

    def _enough(self, mark: Mark) -> Callable[[], bool]:
        """Pressure falls some time after memory is given back: for its sake one model goes in a
        look, and not all of them.
        """
        asked_for_pressure = False

        def enough() -> bool:
            nonlocal asked_for_pressure
            if self.read().share >= mark.clear:
                return False
            again, asked_for_pressure = asked_for_pressure, True
            return again or mark.cleared(0.0, self._floor())

        return enough

    def _floor(self) -> Level:
        """The least that memory is said to be at, whatever its share."""
        return Level.EMERGENCY if self._alarms else self._pressure

    def _end_oversized(self) -> None:
        limits = self._policies.memory.worker_limits
        for found in list(oversized(self._models.workers(), limits, self._resident_of)):
            self._end(found)

    def _end(self, found: Oversized) -> None:
        line = self._policies.line("memory.worker_limits.rss_hard")
        words = (
            f"the worker of {found.worker.name} is ended: its process holds"
            f" {in_gib(found.resident)} and may hold {in_gib(found.limit)} ({line})"
        )
        data = {"model": found.worker.name, "resident": found.resident, "limit": found.limit}
        self._events.record("worker_over_limit", words, data)
        found.worker.condemn("over_limit")
