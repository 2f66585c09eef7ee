"""The flight record: what ran last, on the disk, where the end of the machine leaves it.

One small file, written by a thread: at once when something begins or ends, once a second while
something runs, never while nothing does. A proper stop marks it; the next run reads it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from mlxd.core import aside, durable
from mlxd.core.clock import Clock
from mlxd.core.counts import plural
from mlxd.core.sizes import spoken
from mlxd.core.tasks import tell_defect
from mlxd.core.threads import Threads
from mlxd.telemetry.events import ids_after

log = logging.getLogger(__name__)

FILE = "flight.json"
_SCHEMA = 1
_SECONDS = 1.0
"""Between two records of the same work."""
_PAUSE_SECONDS = 0.25
"""After each, however much begins and ends."""
_AGAIN_SECONDS = 30.0
"""Until another attempt, where the last one failed."""
_LAST_SECONDS = 2.0
"""For the last one; a disk may hang."""
_MOST_BYTES = 1 << 20

Json = dict[str, Any]


class Held(Protocol):
    """What an engine holds, in bytes."""

    @property
    def active(self) -> int: ...
    @property
    def cache(self) -> int: ...
    @property
    def peak(self) -> int: ...


class Flown(Protocol):
    """A worker as it is seen from here."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def ready(self) -> object | None:
        """None while its model loads."""
        ...

    @property
    def running(self) -> int:
        """Its generations."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest of them so far, with its prompt."""
        ...

    @property
    def step(self) -> int:
        """The last that it told."""
        ...

    @property
    def memory(self) -> Held: ...


@dataclass(frozen=True, slots=True)
class LastRun:
    """What the run before left behind."""

    record: Mapping[str, Any]
    """Empty: none, or none that can be read."""

    @property
    def unclean(self) -> bool:
        return bool(self.record) and self.record["ended"] != "clean"

    @property
    def at(self) -> float:
        """When the record was written: at most a second before the end, if anything ran."""
        return float(self.record.get("at", 0.0))

    def ids_after(self, clock: Clock) -> int:
        """Where the ids of this run's events begin."""
        return ids_after(int(self.record.get("events", 0)), clock.wall())

    @property
    def message(self) -> str:
        """How an unclean run ended."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds")
        at = at.replace("+00:00", "Z")
        doing = [words for worker in self.record["workers"] if (words := _doing(worker))]
        if not doing:
            return f"the last run was not stopped properly; it last began or ended work at {at}"
        return f"the last run ended while {' and '.join(doing)}, at {at}"

    @property
    def data(self) -> Json:
        """For an event."""
        return {key: self.record[key] for key in _SHOWN if key in self.record}


_SHOWN = ("at", "pid", "mlxd", "engine", "available", "workers")


def last_run(state: Path) -> LastRun:
    """Read before this run writes anything."""
    return LastRun(aside.read(state / FILE, _SCHEMA, _decoded, most=_MOST_BYTES) or {})


class Flight:
    """Keeps the record of this run."""

    def __init__(
        self,
        state: Path,
        clock: Clock,
        workers: Callable[[], Sequence[Flown]],
        *,
        about: Mapping[str, Any],
        available: Callable[[], int | None],
    ) -> None:
        """`about` goes into each record; `available` is the memory that is free, in bytes."""
        self.failure = ""
        """Why the record is not kept now."""
        self._file = state / FILE
        self._clock = clock
        self._workers = workers
        self._about = about
        self._available = available
        self._threads = Threads("flight record")
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Keep it from now on."""
        self._task = asyncio.create_task(self._run(), name="flight record")
        self._task.add_done_callback(tell_defect)

    def changed(self) -> None:
        """Something has begun or ended."""
        self._changed.set()

    async def close(self) -> None:
        """The daemon ends as it should."""
        if self._task is None:
            return
        self._closing.set()
        self._changed.set()
        await asyncio.wait({self._task}, timeout=_LAST_SECONDS)
        self._task.cancel()

    async def _run(self) -> None:
        while not self._closing.is_set():
            self._changed.clear()
            await self._write(ended=None)
            await _within(_PAUSE_SECONDS, self._closing)
            await _within(self._pause(), self._changed)
        await self._write(ended="clean")

    def _pause(self) -> float | None:
        """Until the next record, if nothing begins or ends; None: it tells nothing new."""
        if any(worker.running or worker.ready is None for worker in self._workers()):
            return _SECONDS
        return _AGAIN_SECONDS if self.failure else None

    async def _write(self, ended: str | None) -> None:
        """The disk may be full, or gone: what is served does not depend on it."""
        content = json.dumps(self._record(ended), ensure_ascii=False).encode("utf-8", "replace")
        try:
            await self._threads.run(durable.write, self._file, content)
        except OSError as error:
            if not self.failure:
                self.failure = f"the flight record cannot be written: {error.strerror or error}"
                log.warning("%s", self.failure)
        else:
            self.failure = ""

    def _record(self, ended: str | None) -> Json:
        return {
            "schema": _SCHEMA,
            "ended": ended,
            "at": self._clock.wall(),
            "pid": os.getpid(),
            **self._about,
            "available": self._available(),
            "workers": [_entry(worker) for worker in self._workers()],
        }


async def _within(seconds: float | None, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _entry(worker: Flown) -> Json:
    busy = "generating" if worker.running else "idle"
    state = busy if worker.ready is not None else "loading"
    memory = worker.memory
    return {
        "model": worker.name,
        "pid": worker.pid,
        "state": state,
        "running": worker.running,
        "tokens": worker.longest,
        "step": worker.step,
        "memory": memory.active + memory.cache,
        "peak": memory.peak,
    }


def _decoded(content: bytes) -> Json:
    """Raises one of `aside.STRANGE` for what this version did not write."""
    record: Json = json.loads(content)
    aside.check_version(record["schema"], _SCHEMA)
    if not math.isfinite(record["at"]) or not isinstance(record["events"], int):
        raise ValueError("a number that is none")
    datetime.fromtimestamp(record["at"], UTC)  # it will be shown
    for worker in record["workers"]:
        _doing(worker)
    return record if record["ended"] in ("clean", None) else record | {"ended": None}


def _doing(worker: Mapping[str, Any]) -> str:
    """What a worker did; empty if it was idle."""
    model, state = str(worker["model"]), worker["state"]
    if state == "loading":
        return f"{model} was loading"
    if state != "generating":
        return ""
    requests = plural(int(worker["running"]), "request")
    held = spoken(int(worker["memory"]))
    numbers = f"up to {plural(worker['tokens'], 'token')}, {held} held, last step {worker['step']}"
    return f"{model} generated for {requests} ({numbers})"
