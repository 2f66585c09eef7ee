"""The traffic log of one daemon, as policy wants it: off, or on in one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from mlxd import __version__
from mlxd.core import places
from mlxd.core.story import Story
from mlxd.policy.policy_set import PolicySet
from mlxd.telemetry import traffic
from mlxd.telemetry.events import Event
from mlxd.telemetry.log_file import Target
from mlxd.telemetry.traffic import Evicted, Known, Line, Loaded, Opening
from mlxd.telemetry.traffic_log import TrafficLog

FOLDER = "traffic"
"""In the state folder, where policy names none."""


def folder_of(policies: PolicySet, state: Path) -> Path:
    """Where the traffic log is, or would be."""
    folder = policies.server.traffic.folder
    return state / FOLDER if folder == "auto" else places.expanded(folder)


class Traffic:
    """Follows `server.traffic`; told of every request that has ended, and of every event."""

    def __init__(
        self,
        state: Path,
        wall: Callable[[], float],
        memory: Callable[[], int],
        present: Callable[[], frozenset[str]],
    ) -> None:
        """`memory`: bytes of memory that there are, 0 where it cannot be read. `present`: names of
        the models that are in memory.
        """
        self._state = state
        self._wall = wall
        self._memory = memory
        self._look = present
        self._present: frozenset[str] = frozenset()
        """When the last line was added: the log's thread may not look itself."""
        self._log: TrafficLog | None = None
        self._before: list[TrafficLog] = []
        """Those that are being finished."""
        self._lost_before = 0
        self._models: dict[str, Known] = {}

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._lost_before + sum(log.lost for log in self._logs())

    def apply(self, policies: PolicySet) -> None:
        """Write where policy says, from the next line on."""
        target = self._target(policies)
        log = self._log
        if log is not None and target is not None and target.path == log.target.path:
            log.follow(target)
            return
        if log is not None:
            log.finish()
            self._before = [*self._unfinished(), log]
        self._log = TrafficLog(target, self._opening) if target is not None else None

    def ended(self, story: Story) -> None:
        """A request has ended, whatever came of it. What generates nothing is not written."""
        if self._log is not None and story.want in traffic.GENERATIONS:
            self._add(self._log, traffic.request_of(story))

    def repeated(self, story: Story, count: int, first: float, last: float) -> None:
        """So many more were refused as this one was, the first and the last of them then."""
        if self._log is not None and story.want in traffic.GENERATIONS:
            self._add(self._log, traffic.repeats_of(story, count, first, last))

    def happened(self, event: Event) -> None:
        """Models come and go, whether that is written or not."""
        line = self._model_line(event)
        if line is not None and self._log is not None:
            self._add(self._log, line)

    def warnings(self) -> list[str]:
        """Why it is not written now."""
        failure = self._log.failure if self._log is not None else ""
        if self._log is None or not failure:
            return []
        file = self._log.target.path
        return [f"the traffic log {file} (server.traffic) cannot be written: {failure}"]

    def close(self) -> None:
        """At the end of the daemon: what is waiting is written, if the disk takes it at once."""
        for log in self._logs():
            log.close()

    def _add(self, log: TrafficLog, line: Line) -> None:
        self._present = self._look()
        if isinstance(line, Loaded):  # a file that begins with it says what was there before
            self._present -= {line.model}
        log.add(line)

    def _logs(self) -> list[TrafficLog]:
        return [*self._before, *([self._log] if self._log is not None else [])]

    def _unfinished(self) -> Iterator[TrafficLog]:
        for log in self._before:
            if log.over:
                self._lost_before += log.lost
            else:
                yield log

    def _target(self, policies: PolicySet) -> Target | None:
        settings = policies.server.traffic
        if not settings.record:
            return None
        folder = folder_of(policies, self._state)
        return Target(folder / traffic.FILE, int(settings.rotate.size), settings.rotate.keep)

    def _model_line(self, event: Event) -> Line | None:
        model = str(event.data.get("model") or "")
        if event.type == "load":
            size, seconds = int(event.data["bytes"]), float(event.data["seconds"])
            self._models[model] = Known(bytes=size, seconds=seconds)
            return Loaded(at=event.at, model=model, bytes=size, seconds=seconds)
        if event.type == "evict":
            return Evicted(at=event.at, model=model, reason=str(event.data["reason"]))
        return None

    def _opening(self) -> Opening:
        """Called in the log's thread."""
        present = self._present
        return Opening(
            schema=traffic.SCHEMA,
            mlxd=__version__,
            at=self._wall(),
            memory=self._memory(),
            salt="",
            models={
                name: msgspec.structs.replace(known, loaded=name in present)
                for name, known in dict(self._models).items()
            },
        )
