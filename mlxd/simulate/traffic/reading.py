"""Traffic logs as they were written: several files, in whatever order; what cannot be read is
counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from mlxd.core.counts import form, plural
from mlxd.telemetry import traffic
from mlxd.telemetry.traffic import FILE, SCHEMA, Evicted, Known, Loaded, Missing, Opening, Request

Progress = Callable[[str, int], None]
"""Told what is done, and of how much of it."""
_STEP = 20_000
"""Lines between two words of progress."""


class NoTraffic(Exception):
    """There is nothing to simulate; its words say why."""


@dataclass(slots=True)
class Log:
    """All that was recorded."""

    requests: list[Request] = field(default_factory=list)
    """In the order in which they were judged."""
    loads: list[Loaded] = field(default_factory=list)
    evictions: list[Evicted] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
    """By model, as of the beginning of the earliest file."""
    memory: int = 0
    """Bytes that the machine has; 0: not known."""
    began: float = 0.0
    """In seconds since the epoch."""
    files: int = 0
    broken: int = 0
    """Lines that cannot be read."""
    lost: int = 0
    """Lines that were never written."""

    @property
    def seconds(self) -> float:
        """From the first request to the end of the last."""
        if not self.requests:
            return 0.0
        return max(one.at + one.lasted for one in self.requests) - self.requests[0].at

    def load_seconds(self, model: str) -> float | None:
        """What a load of a model typically took; None: it never was loaded."""
        seconds = [load.seconds for load in self.loads if load.model == model]
        if seconds:
            return median(seconds)
        known = self.known.get(model)
        return known.seconds if known is not None and known.seconds else None

    def size(self, model: str) -> int:
        """Bytes that a model holds; 0: not known."""
        known = self.known.get(model, Known())
        return max([known.bytes, *(load.bytes for load in self.loads if load.model == model)])

    def warnings(self) -> Iterator[str]:
        """What a reader of the report should know."""
        if self.broken:
            left_out = form(self.broken, "it is left out", "they are left out")
            yield f"{plural(self.broken, 'line')} cannot be read: {left_out}"
        if self.lost:
            were = form(self.lost, "was", "were")
            yield f"{plural(self.lost, 'line')} {were} lost while the log was written"


def read(paths: Sequence[Path], progress: Progress = lambda done, count: None) -> Log:
    """Raises NoTraffic."""
    log = Log()
    openings: list[Opening] = []
    done = itertools.count(1)
    for file in _files(paths):
        log.files += 1
        for line in _lines(file, log, openings):
            _take(line, log)
            if (number := next(done)) % _STEP == 0:
                progress("read", number)
    if not log.requests:
        raise NoTraffic(f"{', '.join(map(str, paths))}: no request is recorded there")
    log.requests.sort(key=lambda request: request.asked)
    log.loads.sort(key=lambda load: load.at)
    first = min(openings, key=lambda opening: opening.at)
    log.known, log.memory, log.began = first.models, first.memory, first.at
    return log


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Each once; of a folder those that a daemon wrote there."""
    seen: set[Path] = set()
    for path in paths:
        found = sorted(path.glob(f"{FILE}*")) if path.is_dir() else [path]
        if not found:
            raise NoTraffic(f"{path}: there is no {FILE} in this folder")
        for file in found:
            if (real := file.resolve()) not in seen:
                seen.add(real)
                yield file


def _lines(file: Path, log: Log, openings: list[Opening]) -> Iterator[traffic.Line]:
    """What is in it, once an opening has said how to read it."""
    opening: Opening | None = None
    try:
        with file.open("rb") as stream:
            for raw in stream:
                line = _decoded(raw, log)
                if isinstance(line, Opening):
                    _check_schema(line, file)
                    opening = line
                    openings.append(line)
                elif line is not None and opening is None:
                    raise NoTraffic(f"{file}: its first line does not say what it is: {SCHEMA}")
                elif line is not None and opening is not None:
                    yield _apart(line, opening.salt)
    except OSError as error:
        raise NoTraffic(f"{file}: cannot be read: {error.strerror}") from None


def _decoded(raw: bytes, log: Log) -> traffic.Line | None:
    if not raw.strip():
        return None
    try:
        return traffic.decode(raw)
    except ValueError:
        log.broken += 1
        return None


def _check_schema(opening: Opening, file: Path) -> None:
    if opening.schema != SCHEMA:
        raise NoTraffic(f"{file}: expected {SCHEMA}, got {opening.schema}")


def _apart(line: traffic.Line, salt: str) -> traffic.Line:
    """Equal hashes of different salts are not the same client."""
    if not isinstance(line, Request):
        return line
    return msgspec.structs.replace(
        line,
        address=_named(line.address, salt),
        user=_named(line.user, salt),
        headers={name: _named(value, salt) for name, value in line.headers.items()},
    )


def _named(hashed: str, salt: str) -> str:
    return f"{hashed}:{salt}" if hashed else ""


def _each(line: Request) -> Iterator[Request]:
    """The requests of a line, evenly over its time."""
    if not line.repeats:
        yield line
        return
    gap = (line.last - line.at) / max(1, line.repeats - 1)
    for number in range(line.repeats):
        yield msgspec.structs.replace(line, at=line.at + number * gap, repeats=0, last=0.0)


def _take(line: traffic.Line, log: Log) -> None:
    match line:
        case Request():
            log.requests.extend(_each(line))
        case Loaded():
            log.loads.append(line)
        case Evicted():
            log.evictions.append(line)
        case Missing():
            log.lost += line.count
        case Opening():
            pass
