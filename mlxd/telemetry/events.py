"""What the daemon decided, most recent last: a bounded list that people and programs read.

Ids rise by one from event to event and go on over restarts: a run begins above all that the run
before can have given out. So a follower that names the last id it has seen is told of everything
after it, or that something is missing (`Lost`), and of nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from mlxd.core.clock import Clock
from mlxd.core.counts import form, plural
from mlxd.core.lines import one_line

log = logging.getLogger("mlxd.events")

KEPT = 1000
RUN_IDS = 1_000_000
"""Ids of one run are above a multiple of this; there are as many runs as seconds."""
LOST = "lost"
"""The type of a record that stands for events that a follower missed. It is no event itself."""
ASKED = "stopped"
"""The reason of a `worker_down` that was asked for (control/exit.py)."""
PRIVATE = frozenset({"by", "client", "stderr"})
"""Data that only the owner of the daemon is told: who asks, and what may name paths."""

_TENANTS_KEY = re.compile(r'\b(clients\.tenants)(?:\.[\w-]+|\["(?:[^"\\]|\\.)*(?:"\]|$))')
_TENANTS_RULE = re.compile(r"(tenant):.*?(:(?:daily_)?tokens)?")
_TEXT = 500
_TAIL = 4000
"""Characters of a worker's stderr."""
_ITEMS = 50
_DEPTH = 6

TYPES: Mapping[str, int] = {
    "worker_up": logging.INFO,
    "worker_down": logging.WARNING,
    "restart": logging.WARNING,
    "load": logging.INFO,
    "undrafted": logging.WARNING,
    "evict": logging.INFO,
    "pressure": logging.INFO,
    "breaker": logging.WARNING,
    "reload": logging.INFO,
    "reject": logging.INFO,
    "replay": logging.WARNING,
    "unclean_end": logging.WARNING,
    "drain": logging.INFO,
    "wake": logging.INFO,
    "starts_held": logging.CRITICAL,
    "starts_released": logging.WARNING,
    "memory_action": logging.WARNING,
    "memory_emergency": logging.ERROR,
    "worker_over_limit": logging.ERROR,
    "model_pulled": logging.INFO,
    "pull_failed": logging.WARNING,
    "model_copied": logging.INFO,
    "model_created": logging.INFO,
    "model_removed": logging.INFO,
    "name_removed": logging.INFO,
}
"""Each type and the level that it is logged at; docs/reference/events.md says what they carry."""


@dataclass(frozen=True, slots=True)
class Event:
    """One decision."""

    id: int
    at: float
    """Seconds since the epoch."""
    type: str
    """Stable and snake_case: one of `TYPES`."""
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def in_public(self) -> dict[str, Any]:
        """For whoever can reach the daemon: without what is `PRIVATE`, and the names of tenants."""
        data = {key: value for key, value in self.data.items() if key not in PRIVATE}
        return self.as_json() | {"message": _unnamed(self.message), "data": _unnamed(data)}


@dataclass(frozen=True, slots=True)
class Lost:
    """Events that a follower is not told any more."""

    id: int
    """Of the last of them: whoever goes on from here misses nothing else."""
    at: float
    count: int | None
    """None: of an earlier run, or unknown ids; there may be none."""
    type: str = LOST

    @property
    def message(self) -> str:
        if self.count is None:
            return "the id is not of this run of mlxd: later events of that run are not kept"
        return f"{plural(self.count, 'event')} {form(self.count, 'is', 'are')} not kept any more"

    def as_json(self) -> dict[str, Any]:
        told = {"id": self.id, "at": self.at, "type": self.type, "message": self.message}
        return told | {"data": {"count": self.count}}

    def in_public(self) -> dict[str, Any]:
        return self.as_json()


Record = Event | Lost


def ids_after(previous: int, wall: float) -> int:
    """Where the ids of a run begin; `previous`: where those of the last one did, 0 if unknown.

    By the clock, or where that was set back, by what the last run wrote down.
    """
    return max(int(wall), previous // RUN_IDS + 1) * RUN_IDS


class Events:
    """The last `KEPT` of them. To be used on the event loop's thread only."""

    def __init__(self, clock: Clock, after: int = 0) -> None:
        """`after`: of `ids_after`; the first id is the next one."""
        self.after = after
        self.observers: list[Callable[[Event], None]] = []
        """Told of each as it happens; they raise nothing."""
        self.closed = False
        self._clock = clock
        self._recent: deque[Event] = deque(maxlen=KEPT)
        self._last_id = after
        self._followers: set[Follower] = set()

    def record(
        self,
        type: str,
        message: str,
        data: Mapping[str, Any] | None = None,
        *,
        level: int | None = None,
    ) -> Event:
        """Add one, and log it; `level` in place of its type's.

        Whatever strings it carries become short and one line each.
        """
        self._last_id += 1
        plain = {str(key): _plain(value, str(key)) for key, value in (data or {}).items()}
        event = Event(self._last_id, self._clock.wall(), type, _short(message), plain)
        self._recent.append(event)
        extra = {"event": type, "model": str(plain.get("model") or "")}
        log.log(_level(event) if level is None else level, "%s", event.message, extra=extra)
        for follower in self._followers:
            follower.wake.set()
        for observer in self.observers:
            observer(event)
        return event

    def since(self, id: int = 0) -> list[Event]:
        """Those after event `id`, the oldest first; older than the last `KEPT` are forgotten."""
        return list(islice(self._recent, max(0, id + 1 - self.oldest), None))

    @property
    def oldest(self) -> int:
        """The id of the oldest that is kept, or else of the next one."""
        return self._recent[0].id if self._recent else self._last_id + 1

    @property
    def last_id(self) -> int:
        return self._last_id

    def lost(self, after: int) -> Lost | None:
        """What is missing between event `after` and what is kept."""
        if not self.after <= after <= self._last_id:
            return Lost(self.oldest - 1, self._clock.wall(), None)
        missing = self.oldest - 1 - after
        return Lost(self.oldest - 1, self._clock.wall(), missing) if missing > 0 else None

    @contextlib.contextmanager
    def subscribe(
        self, since: int | None = None, types: frozenset[str] = frozenset()
    ) -> Iterator[Follower]:
        """Follow from event `since` on; 0: from the oldest that is kept; None: from now on.

        `types`: only of these, and `Lost`; none: of all.
        """
        follower = Follower(self, self._last_id if since is None else since, types)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        """The daemon ends: followers end once they have taken what there is."""
        self.closed = True
        for follower in self._followers:
            follower.wake.set()


class Follower:
    """A place in the list. What it waits for is bounded by what the list keeps: the slow are told
    how many they missed, and hold up nobody.
    """

    def __init__(self, events: Events, since: int, types: frozenset[str]) -> None:
        self.wake = asyncio.Event()
        self._events = events
        self._types = types
        self._at = since or events.oldest - 1

    def take(self) -> list[Record]:
        """All that there is after what was taken before."""
        self.wake.clear()
        lost = self._events.lost(self._at)
        if lost is not None:
            self._at = lost.id
        found = self._events.since(self._at)
        self._at = found[-1].id if found else self._at
        wanted = [event for event in found if not self._types or event.type in self._types]
        return [lost, *wanted] if lost is not None else [*wanted]

    async def wait(self, seconds: float | None = None) -> bool:
        """Until there may be something to take; False: not within `seconds`."""
        if self._events.closed or self._at != self._events.last_id:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        except TimeoutError:
            return False
        return True

    async def records(self) -> AsyncIterator[Record]:
        """One after the other, until the daemon ends."""
        while True:
            found = self.take()
            for record in found:
                yield record
            if not found and self._events.closed:
                return
            if not found:
                await self.wait()


def _level(event: Event) -> int:
    asked_for = event.type == "worker_down" and event.data.get("reason") == ASKED
    return logging.INFO if asked_for else TYPES.get(event.type, logging.INFO)


def _unnamed(value: Any) -> Any:
    """The same, with `<name>` for that of a tenant in keys of policies, and in names of rules."""
    if isinstance(value, str):
        if rule := _TENANTS_RULE.fullmatch(value):
            return f"{rule[1]}:<name>{rule[2] or ''}"
        return _TENANTS_KEY.sub(r"\1.<name>", value)
    if isinstance(value, Mapping):
        return {_unnamed(key): _unnamed(one) for key, one in value.items()}
    return [_unnamed(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any, key: str = "", depth: int = 0) -> Any:
    """What JSON can carry, without what could forge a line or fill the memory."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth < _DEPTH:
        pairs = islice(value.items(), _ITEMS)
        return {_short(str(name)): _plain(one, str(name), depth + 1) for name, one in pairs}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEPTH:
        return [_plain(one, "", depth + 1) for one in islice(value, _ITEMS)]
    text = str(value)
    if key == "stderr":
        return "\n".join(one_line(line) for line in text[-_TAIL:].splitlines())
    return _short(text)


def _short(text: str) -> str:
    line = one_line(text[: _TEXT + 1])
    return line if len(line) <= _TEXT else f"{line[: _TEXT - 1]}…"
