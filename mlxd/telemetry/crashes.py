"""Crash records: how workers and the daemon ended that nobody asked to end, on the disk.

One line of JSON each, the newest `KEPT` of them. Where a crash cut a line off, or another version
of mlxd wrote it, the others are read all the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mlxd.core import aside, durable
from mlxd.core.tasks import tell_defect
from mlxd.core.threads import Threads
from mlxd.telemetry.events import ASKED, Event, Events

log = logging.getLogger(__name__)

FILE = "crashes.jsonl"
KEPT = 200
_SCHEMA = 1
_MOST_LINES = 2 * KEPT
"""Until the oldest are cut off."""
_MOST_BYTES = 32 << 20
_LAST_SECONDS = 2.0
AGAIN_SECONDS = 30.0
"""Until another attempt, where the last one failed."""
_TYPES = frozenset({"worker_down", "unclean_end"})

Json = dict[str, Any]


class Crashes:
    """Writes down every event that tells of a crash."""

    def __init__(self, state: Path, events: Events) -> None:
        self.failure = ""
        """Why crashes are not written down now."""
        self._file = state / FILE
        self._events = events
        self._threads = Threads("crash records")
        self._lines: int | None = None
        self._unwritten: deque[Json] = deque(maxlen=KEPT)
        self._writing = asyncio.Lock()
        self._again: asyncio.TimerHandle | None = None
        self._trying: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Write down from now on, and what is in the list of events already."""
        self._task = asyncio.create_task(self._run(), name="crash records")
        self._task.add_done_callback(tell_defect)

    async def close(self) -> None:
        """After the end of `events`: what there is still is written down."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_LAST_SECONDS)
            self._task.cancel()
        if self._again is not None:
            self._again.cancel()
        if self._trying is not None:
            self._trying.cancel()

    async def _run(self) -> None:
        with self._events.subscribe(since=0, types=_TYPES) as follower:
            async for event in follower.records():
                if isinstance(event, Event) and event.data.get("reason") != ASKED:
                    self._unwritten.append(record_of(event))
                    await self._write()
        await self._write()

    async def _write(self) -> None:
        """What could not be written before comes first."""
        async with self._writing:
            while self._unwritten:
                record = self._unwritten.popleft()
                try:
                    self._lines = await self._threads.run(_add, self._file, record, self._lines)
                except OSError as error:
                    if len(self._unwritten) < KEPT:
                        self._unwritten.appendleft(record)
                    self._failed(error)
                    return
                self.failure = ""

    def _failed(self, error: OSError) -> None:
        self._lines = None
        if not self.failure:
            self.failure = f"crashes cannot be written down: {error.strerror or error}"
            log.warning("%s", self.failure)
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._trying = asyncio.create_task(self._write(), name="crash records, again")
        self._trying.add_done_callback(tell_defect)


def record_of(event: Event) -> Json:
    """What is kept of it."""
    kind = "worker" if event.type == "worker_down" else "daemon"
    about = {"schema": _SCHEMA, "kind": kind, "event": event.id}
    return about | {"message": event.message} | {"at": event.at} | dict(event.data)


def read(state: Path) -> list[Json]:
    """The newest `KEPT`, the oldest first. Raises OSError; without a file there are none."""
    found = (_decoded(line) for line in _lines(state / FILE))
    return [record for record in found if record is not None][-KEPT:]


def _lines(file: Path) -> list[bytes]:
    """The last of them. Raises OSError; without a file there are none."""
    try:
        with _opened(file) as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _MOST_BYTES))
            return stream.read(_MOST_BYTES).splitlines()
    except FileNotFoundError:
        return []


def _opened(file: Path) -> BinaryIO:
    """For reading; a pipe in its place is not waited for. Raises OSError."""
    return open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def _add(file: Path, record: Mapping[str, Any], lines: int | None) -> int:
    """How many lines the file has then; `lines`: before, None: not known. Raises OSError."""
    if lines is None:
        aside.clear_for_file(file)
        lines = _count(file)
    if lines >= _MOST_LINES:
        kept = [line for line in _lines(file) if _of_some_version(line)][-KEPT:]
        durable.write(file, b"".join(line + b"\n" for line in kept))
        lines = len(kept)
    durable.append(file, _encoded(record))
    return lines + 1


def _count(file: Path) -> int:
    """Lines, of whatever; `_MOST_LINES` are as good as any more. Raises OSError."""
    try:
        with _opened(file) as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return 0
    full = len(content) > _MOST_BYTES
    return _MOST_LINES if full else sum(map(bool, content.splitlines()))


def _encoded(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")


def _decoded(line: bytes) -> Json | None:
    """None: empty, cut off, or of another version."""
    try:
        record = json.loads(line)
        sound = record["schema"] == _SCHEMA and math.isfinite(record["at"])
        return record if sound and isinstance(record["message"], str) else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _of_some_version(line: bytes) -> bool:
    """Whether a version of mlxd may know it: this one may be older than the one that wrote it."""
    try:
        return type(json.loads(line)["schema"]) is int
    except aside.STRANGE:
        return False
