"""Whether the daemon keeps dying: its starts, written down in the state folder.

A start is unclean when the run before it was not asked to end and lived for less than a minute.
After more than `most` of them, five within the last hour, the daemon is held: it serves, but starts
no worker. A run that lives for a minute, or was asked to end, breaks the series; while the daemon
is held neither does, since a program that restarts what is not ready must not end the hold. Then an
hour without an unclean start does, or `mlxd service reset`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlxd.core import aside, durable
from mlxd.core.clock import Clock

SETTLED_SECONDS = 60.0
QUIET_SECONDS = 3600.0
PER_HOUR = 5
"""Unclean starts within an hour; for a smaller `most`, one more than that."""
_FILE = "starts.json"
_SCHEMA = 1
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Starts:
    """The series so far, and the run that it has come to. Times are seconds since the epoch."""

    unclean: int = 0
    recent: tuple[float, ...] = ()
    """When the last of them were, the newest last."""
    held: bool = False
    """The run is held."""
    running: bool = False
    """The run has neither settled nor been asked to end: dying now is unclean."""

    def begun(self, now: float, most: int) -> Starts:
        """The next run begins at `now`."""
        series = self.at(now)
        if self.running:
            recent = (*series.recent, now)[-PER_HOUR:]
            series = replace(series, unclean=series.unclean + 1, recent=recent)
        return replace(series, running=True, held=series._too_many(now, most))

    def settled(self) -> Starts:
        """The run has lived for a minute, or ends because somebody wants it to."""
        return replace(self, running=False) if self.held else Starts()

    def at(self, now: float) -> Starts:
        """As things are at `now`: a quiet hour clears it. The clock may have been set back."""
        recent = tuple(min(at, now) for at in self.recent)
        if not recent or now - recent[-1] < QUIET_SECONDS:
            return replace(self, recent=recent)
        return Starts(running=self.running)

    def _too_many(self, now: float, most: int) -> bool:
        within = sum(now - at < QUIET_SECONDS for at in self.recent)
        return self.unclean > most and within >= min(PER_HOUR, most + 1)


class StartLedger:
    """The starts of one state folder, as this run knows and writes them.

    Times of this run are of the monotonic clock: a clock that is set back keeps nothing held. Of a
    hold the wall clock may end the hour sooner: the monotonic one stands still while the machine
    sleeps.
    """

    def __init__(self, state: Path, clock: Clock, most: int) -> None:
        self._file = state / _FILE
        self._clock = clock
        self._most = most
        self._writing = threading.Lock()
        self._settles: float | None = None
        """When this run will have lived for a minute."""
        self._quiet = 0.0
        """When the last unclean start will be an hour ago."""
        self._quiet_wall = 0.0
        """The same, on the wall clock."""
        self.starts = Starts()

    @property
    def held(self) -> bool:
        return self.starts.held

    @property
    def reason(self) -> str:
        """Why no worker is started; empty: they are."""
        if not self.held:
            return ""
        return (
            f"the daemon ended {self.starts.unclean} times within a minute of its start, unasked:"
            " no model is loaded until `mlxd service reset`, or after an hour"
        )

    def begin(self) -> None:
        """This run begins, even if that cannot be written down, which raises OSError."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        self.starts = read(self._file).begun(wall, self._most)
        self._settles = now + SETTLED_SECONDS
        if self.starts.recent:
            self._quiet_wall = self.starts.recent[-1] + QUIET_SECONDS
            self._quiet = now + self._quiet_wall - wall
        self.save()

    def due(self) -> float | None:
        """Seconds until `advance` changes something; None: nothing will."""
        left = []
        if self._settles is not None:
            left.append(self._settles - self._clock.monotonic())
        if self.held:
            left.append(self._until_quiet())
        return max(0.0, min(left)) if left else None

    def advance(self) -> bool:
        """Take note of the time that has passed; whether that ended a hold."""
        now, held = self._clock.monotonic(), self.held
        if self._settles is not None and now >= self._settles:
            self._settles = None
            self.starts = self.starts.settled()
        if held and self._until_quiet() <= 0:
            self.starts = Starts(running=self.starts.running)
        return held and not self.held

    def _until_quiet(self) -> float:
        by_wall = self._quiet_wall - self._clock.wall()
        return min(self._quiet - self._clock.monotonic(), by_wall)

    def asked_to_end(self) -> None:
        """What follows is no crash, even if somebody loses patience."""
        self._settles = None
        self.starts = self.starts.settled()

    def reset(self) -> bool:
        """Forget the series; whether that ended a hold."""
        held = self.held
        self.starts = Starts(running=self.starts.running)
        return held

    def save(self) -> None:
        """Raises OSError. May wait for the disk."""
        with self._writing:
            said = {"schema": _SCHEMA, **asdict(self.starts)}
            durable.write(self._file, json.dumps(said).encode())


def reset(state: Path) -> bool:
    """Of a folder that no daemon runs with: whether the next one would have been held.

    Raises OSError.
    """
    file = state / _FILE
    held = read(file).held
    file.unlink(missing_ok=True)
    return held


def look(state: Path) -> Starts:
    """What the folder's last run wrote down, or the present one, whose file is left as it is."""
    try:
        return _decoded(durable.read(state / _FILE, _MOST_BYTES))
    except (OSError, *aside.STRANGE):
        return Starts()


def read(file: Path) -> Starts:
    """What cannot be read, or is of another version, is set aside."""
    return aside.read(file, _SCHEMA, _decoded, most=_MOST_BYTES) or Starts()


def _decoded(content: bytes) -> Starts:
    said: Mapping[str, Any] = json.loads(content)
    aside.check_version(said["schema"], _SCHEMA)
    return Starts(
        unclean=int(said["unclean"]),
        recent=tuple(float(at) for at in said["recent"])[-PER_HOUR:],
        held=bool(said["held"]),
        running=bool(said["running"]),
    )
