"""Kills a daemon at one line after another of what it does to policies; what does a boot find?

python tests/support/policy_crash.py DEED POINTS WRITING_POINTS SCRATCH

prints one JSON object (`Sweep`). A process of its own, because it forks: every kill is of a child
that a warm parent makes, so a point costs what the deed costs and no imports.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import mlxd.policy
from mlxd.core import durable
from mlxd.policy import history as history_module
from mlxd.policy import rollback
from mlxd.policy.boot import boot
from mlxd.policy.diff import changes
from mlxd.policy.files import PolicyFiles
from mlxd.policy.history import KEPT, history_of
from mlxd.policy.load import PolicyErrors, judge
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import Live
from tests.support.policy_daemon import HastyClock, Holder, holding, save, save_all

Json = dict[str, Any]
Deed = Callable[[Holder], Awaitable[object]]

_HEAD = "schema: mlxd/v1\n"
OLD = {
    "limits.yaml": f"{_HEAD}concurrency: {{max_in_flight: 1}}\n",
    "timeouts.yaml": f"{_HEAD}queue: 1s\n",
    "memory.yaml": f"{_HEAD}eviction: {{keep: 11}}\n",
}
"""One more file than NEW has, and one less."""
NEW = {
    "limits.yaml": f"{_HEAD}concurrency: {{max_in_flight: 2}}\n",
    "timeouts.yaml": f"{_HEAD}queue: 2s\n",
    "models.yaml": f"{_HEAD}load: {{max_parallel: 12}}\n",
}
BROKEN = {**NEW, "timeouts.yaml": f"{_HEAD}queue: 2 parsecs\n"}
NEXT = {
    "limits.yaml": f"{_HEAD}concurrency: {{max_in_flight: 3}}\n",
    "timeouts.yaml": f"{_HEAD}queue: 3s\n",
}
_POLICY = str(Path(mlxd.policy.__file__).parent)
_WRITING = frozenset((rollback.__file__, history_module.__file__, durable.__file__))
_LIBRARY = frozenset((pathlib.__file__, shutil.__file__))


def named(policies: PolicySet) -> str:
    """`old`, `new` or `next` if every value is that set's; else the mix that it is."""
    values = (
        policies.limits.concurrency.max_in_flight, str(policies.timeouts.queue),
        policies.memory.eviction.keep, policies.models.load.max_parallel,
    )  # fmt: skip
    return _NAMES.get(values, f"mix {values}")


_NAMES = {(1, "1s", 11, 1): "old", (2, "2s", 1, 12): "new", (3, "3s", 1, 1): "next"}


@dataclass
class Point:
    """One kill, and what a boot made of what it left."""

    line: int
    where: str
    """File and line that was about to run; empty where the deed was over before."""
    booted: str = ""
    """See `named`."""
    without_the_folder: str = ""
    """The same if a file of the folder is broken besides: from the history alone."""
    kept: str = ""
    """The history's generations, newest first."""
    left: list[str] = field(default_factory=list)
    """Temporary files that are still there after a boot."""
    problems: list[str] = field(default_factory=list)
    """What should not be, in words."""


@dataclass
class Sweep:
    """All kills of one deed."""

    deed: str
    lines: int
    """That the deed takes in mlxd/policy."""
    writing_lines: int
    """The same in what writes files, and in the library's functions that it calls."""
    points: list[Point]

    def booted(self) -> Counter[str]:
        return Counter(point.booted for point in self.points)

    def problems(self) -> list[str]:
        return [f"{p.line} {p.where}: {problem}" for p in self.points for problem in p.problems]


def read_sweep(text: str) -> Sweep:
    """From what this program printed."""
    said = json.loads(text)
    return Sweep(**{**said, "points": [Point(**point) for point in said["points"]]})


# -- what is done, in the child that is killed


class Meter:
    """Counts lines as they run, in all threads; at one of them the process is gone."""

    def __init__(self, *, writing: bool, fatal: int, told: int) -> None:
        self._writing = writing
        self._fatal = fatal
        self._told = told
        self._numbers = itertools.count(1)
        self.counted = 0
        self.armed = False

    def install(self) -> None:
        """Before any thread is there: threads that run already cannot be traced."""
        threading.settrace(self._called)
        sys.settrace(self._called)

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._ran if self._counts(frame) else None

    def _counts(self, frame: FrameType) -> bool:
        file = frame.f_code.co_filename
        if not self._writing:
            return file.startswith(_POLICY)
        caller = frame.f_back.f_code.co_filename if frame.f_back is not None else ""
        return file in _WRITING or (file in _LIBRARY and caller in _WRITING)

    def _ran(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and self.armed:
            self.counted = next(self._numbers)
            if self.counted == self._fatal:
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                os.write(self._told, json.dumps({"where": where}).encode())
                os.kill(os.getpid(), signal.SIGKILL)
        return self._ran


@contextmanager
def armed(meter: Meter) -> Iterator[None]:
    meter.armed = True
    try:
        yield
    finally:
        meter.armed = False


async def _reload(holder: Holder, meter: Meter) -> None:
    save_all(holder.folder, NEW)
    with armed(meter):
        _expect((await holder.reloader.reload("admin")).result, "applied")


async def _refused(holder: Holder, meter: Meter) -> None:
    save_all(holder.folder, BROKEN)
    with armed(meter):
        _expect((await holder.reloader.reload("admin")).result, "refused")


async def _rollback(holder: Holder, meter: Meter) -> None:
    save_all(holder.folder, NEW)
    _expect((await holder.reloader.reload("admin")).result, "applied")
    with armed(meter):
        _expect((await holder.reloader.rollback(1)).result, "applied")


async def _rollback_without_note(holder: Holder, meter: Meter) -> None:
    """How it would be if nothing was noted first: the sweep must find this out."""
    without = vars(durable) | {"put": lambda file, content: None}
    vars(rollback)["durable"] = SimpleNamespace(**without)
    await _rollback(holder, meter)


async def _rollback_undone(holder: Holder, meter: Meter) -> None:
    """Its files are written, then an applier fails against all rules: they are put back."""
    save_all(holder.folder, NEW)
    _expect((await holder.reloader.reload("admin")).result, "applied")
    holder.reloader.use(Live(_fail))
    logging.disable()  # of the defect, which is meant
    with armed(meter):
        _expect((await holder.reloader.rollback(1)).result, "refused")


def _fail(policies: PolicySet) -> None:
    raise RuntimeError("a defect")


async def _finish(holder: Holder, meter: Meter) -> None:
    """A boot that goes on with a rollback which was killed before it wrote a file."""
    save_all(holder.folder, NEW)
    contents = {name: OLD[name].encode() if name in OLD else None for name in {**OLD, **NEW}}
    note = holder.history.folder / rollback._NOTE
    noted: list[bytes] = []
    with patch.object(rollback, "_write_all", lambda *_: noted.append(note.read_bytes())):
        seen = {name: text.encode() for name, text in NEW.items()}
        rollback.WriteBack(holder.history, holder.folder, seen, contents).write()
    save(note, noted[0])
    with armed(meter):
        _expect(named(boot(holder.folder, (), holder.history).policies), "old")


DEEDS = {
    "reload": _reload,
    "refused": _refused,
    "rollback": _rollback,
    "rollback-undone": _rollback_undone,
    "rollback-without-note": _rollback_without_note,
    "finish": _finish,
}


def _expect(found: str, wanted: str) -> None:
    if found != wanted:
        raise RuntimeError(f"expected {wanted}, got {found}")


def _appliers() -> list[Live]:
    return [Live(lambda policies: None), Live(lambda policies: None)]


async def _do(deed: str, place: Path, meter: Meter) -> Json:
    save_all(place / "policies", OLD)
    async with holding(
        place / "policies", place / "state", HastyClock(), *_appliers()
    ) as holder:  # fmt: skip
        await DEEDS[deed](holder, meter)
    return {"counted": meter.counted}


def _deed(told: int, deed: str, place: Path, writing: bool, fatal: int) -> Json:
    meter = Meter(writing=writing, fatal=fatal, told=told)
    meter.install()
    return asyncio.run(_do(deed, place, meter))


# -- what a boot finds, in another child


def _look(_: int, place: Path) -> Json:
    return asyncio.run(_found(place))


async def _found(place: Path) -> Json:
    folder, state = place / "policies", place / "state"
    left = place / "left"
    for one in (folder, state):
        shutil.copytree(one, left / one.name)
    found = {
        **_booted(folder, state),
        "left": [file.name for where in (folder, state / "lkg") for file in where.glob(".*")],
        "problems": [*_problems(folder, state)],
    }
    async with holding(folder, state, HastyClock(), *_appliers()) as holder:
        save_all(folder, NEXT)
        outcome = await holder.reloader.reload("admin")
        if (outcome.result, named(holder.store.current)) != ("applied", "next"):
            found["problems"].append(f"the next reload is not as it should be: {outcome}")
    for one in (folder, state):
        shutil.rmtree(one)
        shutil.copytree(left / one.name, one)
    save(folder / "limits.yaml", "schema: [half a file")
    found["without_the_folder"] = _booted(folder, state)["booted"]
    return found


def _booted(folder: Path, state: Path) -> Json:
    history = history_of(state)
    first = named(boot(folder, (), history).policies)
    again = named(boot(folder, (), history).policies)
    kept = [named(judge(one.files())) for one in history.newest_first()]
    return {"booted": first if first == again else f"mix: {first}, then {again}",
            "kept": " ".join(kept)}  # fmt: skip


def _problems(folder: Path, state: Path) -> Iterator[str]:
    history = history_of(state)
    numbers = history.numbers()
    yield from (f"generation {n} cannot be read" for n in numbers if history.get(n) is None)
    if not numbers or len(numbers) > KEPT:
        yield f"{len(numbers)} generations are kept"
    if (history.folder / rollback._NOTE).exists():
        yield "the note is still there after a boot"


# -- the sweep, in the warm parent


def in_child(work: Callable[..., Json], *arguments: object) -> tuple[bool, Json]:
    """Whether it was killed, and what it had to say. Raises RuntimeError if it failed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, json.dumps(work(write, *arguments)).encode())
            os._exit(0)
        finally:  # only after an exception, which this shows
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a child of {work.__name__} {arguments} ended with {status}")
    return status != 0, json.loads(said)


def sweep(
    deed: str,
    points: int,
    writing_points: int,
    scratch: Path,
    progress: Callable[[int], None] = lambda done: None,
) -> Sweep:
    """Kill it at points spread evenly over its lines, and over those that write files."""
    place = scratch / "counted"
    _warm()
    lines = {w: _run(deed, place, w, 0)[1]["counted"] for w in (False, True)}
    wanted = [(False, n) for n in spread(lines[False], points)]
    wanted += [(True, n) for n in spread(lines[True], writing_points)]
    found = []
    for done, (writing, fatal) in enumerate(wanted, start=1):
        found.append(_point(deed, scratch / "killed", writing, fatal))
        progress(done)
    return Sweep(deed, lines[False], lines[True], found)


def _warm() -> None:
    """What is worked out once in a process is worked out here, and not in each child."""
    old, new = (
        judge(PolicyFiles(None, {name: text.encode() for name, text in files.items()}))
        for files in (OLD, NEW)
    )
    changes(old, new)
    with contextlib.suppress(PolicyErrors):
        judge(PolicyFiles(None, {"timeouts.yaml": BROKEN["timeouts.yaml"].encode()}))


def spread(lines: int, points: int) -> list[int]:
    """The first line, the last one, and what is evenly between; no line twice."""
    if points < 2 or lines < 2:
        return list(range(1, min(points, lines) + 1))
    return sorted({1 + round(n * (lines - 1) / (points - 1)) for n in range(points)})


def _point(deed: str, place: Path, writing: bool, fatal: int) -> Point:
    killed, said = _run(deed, place, writing, fatal)
    point = Point(fatal, said["where"] if killed else "")
    _, found = in_child(_look, place)
    return Point(**{**asdict(point), **found})


def _run(deed: str, place: Path, writing: bool, fatal: int) -> tuple[bool, Json]:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return in_child(_deed, deed, place, writing, fatal)


def main(deed: str, points: str, writing_points: str, scratch: str) -> None:
    found = sweep(deed, int(points), int(writing_points), Path(scratch))
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
