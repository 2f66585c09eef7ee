"""Test files: `schema: mlxd-test/v1` and a list of tests, read as strictly as policies are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from mlxd.policy import strict_yaml
from mlxd.policy.files import bytes_of
from mlxd.policy.load import PolicyError, PolicyErrors
from mlxd.policy.schema import Policy
from mlxd.policy.schema.base import Name
from mlxd.policy.strict_yaml import Document, Path, Place
from mlxd.policy.units import Delay, got
from mlxd.simulate.expect import ExpectAnswers, Placed, counted
from mlxd.simulate.layers import Changes, read_changes
from mlxd.simulate.reading import Reading
from mlxd.simulate.steps import KINDS, StepKind

SCHEMA = "mlxd-test/v1"
_DIGITS = 9
"""Of a second, as of what is written: three times 100ms are 300ms."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens at one time, and what should come of it."""

    at: float
    """Seconds since the test began."""
    kind: StepKind
    expects: tuple[Placed, ...]
    path: Path


@dataclass(frozen=True, slots=True)
class Case:
    """One test: a world of its own."""

    name: str
    file: str
    document: Document
    path: Path
    changes: Changes
    """What it puts over the folder's policies before it begins."""
    steps: tuple[Step, ...]

    def place(self, path: Path) -> Place:
        return self.document.place(path)


def read(file: FilePath) -> tuple[Case, ...]:
    """The tests of a file. Raises PolicyErrors: all that is wrong with it."""
    try:
        raw = bytes_of(file)
    except OSError as error:
        raise PolicyErrors([PolicyError(str(file), f"cannot be read: {error.strerror}")]) from None
    return parse(raw, str(file))


def parse(raw: bytes, file: str) -> tuple[Case, ...]:
    """As `read`, of bytes; `file` is how messages call them."""
    reading = Reading(file, strict_yaml.parse(raw))
    cases = tuple(_cases(reading))
    if reading.errors:
        raise PolicyErrors(sorted(reading.errors, key=lambda error: error.place or Place(1, 1)))
    return cases


class _Named(Policy):
    name: Name


def _cases(reading: Reading) -> Iterator[Case]:
    data = reading.document.data
    if data is None:
        return
    reading.known(data, ("schema", "tests"), ())
    if data.get("schema") != SCHEMA:
        found = f"got {got(data['schema'])}" if "schema" in data else "it is missing"
        reading.refuse(("schema",), f"expected {SCHEMA}, {found}")
    names: set[str] = set()
    for index, test in enumerate(_listed(reading, data, (), "tests")):
        case = _case(reading, test, ("tests", index))
        if case.name in names:
            reading.refuse((*case.path, "name"), f"another test is called {case.name}")
        names.add(case.name)
        yield case


def _case(reading: Reading, value: Any, path: Path) -> Case:
    test = reading.mapping(value, path)
    reading.known(test, ("name", "policies", "steps"), path)
    named = None
    if "name" in test:
        named = reading.model(_Named, {"name": test["name"]}, path)
    else:
        reading.refuse((*path, "name"), "missing: every test has a name")
    changes: Changes = {}
    if "policies" in test:
        changes = read_changes(reading, test["policies"], (*path, "policies"))
    name = named.name if named is not None else f"test {path[-1]}"
    steps = tuple(_steps(reading, _listed(reading, test, path, "steps"), (*path, "steps")))
    return Case(name, reading.file, reading.document, path, changes, steps)


def _listed(reading: Reading, around: Mapping[str, Any], path: Path, name: str) -> list[Any]:
    if name not in around:
        reading.refuse((*path, name), f"missing: expected a list of {name}")
        return []
    return reading.items(around[name], (*path, name), f"a list of {name}")


def _steps(reading: Reading, values: list[Any], path: Path) -> Iterator[Step]:
    now = 0.0
    for index, value in enumerate(values):
        here = (*path, index)
        step = reading.mapping(value, here)
        if step is not value:
            continue
        now = _at(reading, step, here, now)
        kind = _kind(reading, step, here)
        if kind is not None:
            yield Step(now, kind, _expects(reading, step, here, kind), here)
            now = round(now + kind.lasts, _DIGITS)


def _at(reading: Reading, step: Mapping[str, Any], path: Path, now: float) -> float:
    """When the step begins: as written, or when the one before it is over."""
    if "at" not in step:
        return now
    here = (*path, "at")
    try:
        at = Delay.parse(step["at"])
    except ValueError as refused:
        reading.refuse(here, str(refused))
        return now
    if at < now:
        reading.refuse(here, f"expected {now:g}s or later, when the step before is over, got {at}")
        return now
    return float(at)


def _kind(reading: Reading, step: Mapping[str, Any], path: Path) -> StepKind | None:
    """The one thing that the step does."""
    found = [name for name in step if name in KINDS]
    known = [*KINDS, "at", "expect"]
    reading.known(step, known, path)
    if len(found) > 1:
        reading.refuse((*path, found[1]), f"a step does one thing: {found[0]} or {found[1]}")
    if found:
        return KINDS[found[0]].read(reading, step[found[0]], (*path, found[0]))
    if all(name in known for name in step):
        reading.refuse(path, f"a step without {', '.join(KINDS)}: it does nothing")
    return None


def _expects(
    reading: Reading, step: Mapping[str, Any], path: Path, kind: StepKind
) -> tuple[Placed, ...]:
    """What is not written is expected by default: of requests, that they pass."""
    if "expect" not in step:
        return (((kind.kind,), kind.expects()),)
    here = (*path, "expect")
    if not isinstance(step["expect"], list) or not issubclass(kind.expects, ExpectAnswers):
        expect = reading.model(kind.expects, step["expect"], here)
        if isinstance(expect, ExpectAnswers) and expect.count is not None:
            reading.refuse((*here, "count"), "a count stands in a list of expectations only")
        return ((("expect",), expect),) if expect is not None else ()
    found = [
        (("expect", index), reading.model(kind.expects, one, (*here, index)))
        for index, one in enumerate(step["expect"])
    ]
    placed = tuple((at, expect) for at, expect in found if expect is not None)
    total = sum(counted(expect) for _, expect in placed)
    if len(placed) == len(found) and total != kind.requests:
        message = f"the counts make {total}, and n is {kind.requests}"
        reading.refuse(here, message)
    return placed
