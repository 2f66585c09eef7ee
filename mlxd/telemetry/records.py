"""What this run leaves behind for the next one, and what the last one left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlxd import __version__
from mlxd.core import versions
from mlxd.core.clock import Clock
from mlxd.telemetry.crashes import Crashes, read
from mlxd.telemetry.events import Events
from mlxd.telemetry.flight import Flight, Flown, LastRun


class Records:
    """The flight record and the crash records."""

    def __init__(
        self,
        state: Path,
        clock: Clock,
        events: Events,
        last: LastRun,
        *,
        workers: Callable[[], Sequence[Flown]],
        available: Callable[[], int | None],
    ) -> None:
        about = {"mlxd": __version__, "engine": versions.engine(), "events": events.after}
        self.flight = Flight(state, clock, workers, about=about, available=available)
        self._crashes = Crashes(state, events)
        self._state = state
        self._events = events
        self._last = last

    def start(self) -> None:
        """Tell of the last run, if it ended badly, and keep the records of this one."""
        if self._last.unclean:
            self._events.record("unclean_end", self._last.message, self._last.data)
        self._crashes.start()
        self.flight.start()

    async def close(self) -> None:
        """The end of a proper stop; `events` have ended."""
        await self._crashes.close()
        await self.flight.close()

    def crashes(self) -> list[dict[str, Any]]:
        """Those that are written down, the oldest first. May block. Raises OSError."""
        return read(self._state)

    def warnings(self) -> list[str]:
        """For people."""
        last = self._last.message if self._last.unclean else ""
        return [words for words in (last, self.flight.failure, self._crashes.failure) if words]
