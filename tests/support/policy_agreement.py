"""Whether `mlxd policy check` and a reload say the same of a policy folder, down to each error."""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mlxd.cli.policy.check import check
from mlxd.cli.policy.here import here
from mlxd.control.admission import Admission
from mlxd.control.keys import Keys
from mlxd.core.clock import ManualClock
from mlxd.core.places import VARIABLES
from mlxd.policy import settle
from mlxd.policy.load import PolicyError, load
from mlxd.policy.outcome import Outcome, error_json
from mlxd.policy.policy_set import FILES
from mlxd.policy.store import Live
from mlxd.policy.strict_yaml import parse, parts
from tests.support.policy_daemon import HastyClock, Holder, holding
from tests.support.policy_mutations import Files, Mutated, mutated, shipped

Json = dict[str, Any]
ENVIRONMENTS: tuple[Mapping[str, str], ...] = (
    {},
    {"MLXD_PORT": "12345", "MLXD_MODELS": "/srv/models", "MLXD_HOST": "127.0.0.1"},
)
"""Three sets in four are judged without overrides, the fourth beneath these."""


@dataclass
class Agreement:
    """What came of all sets."""

    valid: int = 0
    refused: int = 0
    unchanged: int = 0
    """Of the valid ones."""
    errors: int = 0
    """Of the refused ones together."""
    placed: int = 0
    """Errors with a line and column."""
    messages: set[str] = field(default_factory=set)
    """The beginnings of messages, to see how many kinds of errors came up."""
    complaints: list[str] = field(default_factory=list)
    """Everything that was not as it should be, in words."""


async def agreement(
    numbers: range, scratch: Path, progress: Callable[[int], None] = lambda done: None
) -> Agreement:
    """Check and reload the set of each number. Scratch is an empty folder."""
    found = Agreement()
    done = 0
    for index, environment in enumerate(ENVIRONMENTS):
        mine = [number for number in numbers if (number % 4 == 3) == bool(index)]
        place = scratch / str(index)
        (place / "policies").mkdir(parents=True)
        with _surroundings(environment):
            async for _ in _all(mine, place, found):
                done += 1
                progress(done)
    return found


@contextmanager
def _surroundings(environment: Mapping[str, str]) -> Iterator[None]:
    """Only these variables, and no waiting between two readings of the files."""
    others = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with (
        patch.object(settle, "_STEP_SECONDS", 0.0),
        patch.dict(os.environ, {**others, **environment}, clear=True),
    ):
        yield


async def compared(place: Path, change: Callable[[Path], None]) -> tuple[list[str], bool]:
    """What check and reload disagree on after one change to the shipped folder; and their word.

    `place` is an empty folder.
    """
    folder, state = place / "policies", place / "state"
    folder.mkdir()
    write(folder, shipped())
    with _surroundings({}):
        async with holding(folder, state, HastyClock()) as holder:
            change(folder)
            status, said = checked(folder, state)
            outcome = await holder.reloader.reload("admin")
    return [*_disagreements(status, said, outcome)], outcome.ok


async def _all(numbers: list[int], place: Path, found: Agreement) -> AsyncIterator[int]:
    base = shipped()
    folder, state = place / "policies", place / "state"
    write(folder, base)
    overrides = here(str(folder), str(state)).overrides
    admission = Admission(ManualClock())
    clock = HastyClock()
    appliers = (
        Keys(load(folder, overrides), state, clock),
        Live(admission.apply),
        Live(lambda policies: None),
    )
    async with holding(folder, state, clock, *appliers, overrides=overrides) as holder:
        for number in numbers:
            one = mutated(number, base)
            write(folder, one.files)
            try:
                complaints = [*await _compare(holder, state, one, found)]
            except Exception as error:  # noqa: BLE001  # whatever it is, the set that caused it is wanted
                complaints = [f"raised {error!r}"]
            found.complaints += [f"set {number} ({one.told}): {text}" for text in complaints]
            yield number


def write(folder: Path, files: Files) -> None:
    """Exactly these files, whatever their names."""
    for present in folder.iterdir():
        if present.name not in files:
            present.unlink()
    for name, raw in files.items():
        file = folder / name
        if not file.exists() or file.read_bytes() != raw:
            file.write_bytes(raw)


async def _compare(holder: Holder, state: Path, one: Mutated, found: Agreement) -> list[str]:
    before, generation = holder.store.current, holder.store.current.generation
    status, said = checked(holder.folder, state)
    outcome = await holder.reloader.reload("admin")
    complaints = [*_disagreements(status, said, outcome)]
    if outcome.ok:
        found.valid += 1
        found.unchanged += outcome.result == "unchanged"
        if load(holder.folder, here(str(holder.folder), str(state)).overrides).digest != (
            holder.store.current.digest
        ):
            complaints.append("what is in force is not what the files say")
    else:
        found.refused += 1
        if holder.store.current is not before or outcome.generation != generation:
            complaints.append("a refusal changed what is in force")
        complaints += [*_misplaced(outcome.errors, one.files, found)]
    return complaints


def checked(folder: Path, state: Path) -> tuple[int, Json]:
    """The exit status and report of `mlxd policy check --json`, on a strict UTF-8 stdout."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stdout(out), redirect_stderr(io.StringIO()) as errors:
        status = check(str(folder), str(state), as_json=True, online=False)
    if errors.getvalue():
        raise AssertionError(f"check said on stderr: {errors.getvalue()}")
    out.seek(0)
    return status, json.loads(out.read())


def _disagreements(status: int, said: Json, outcome: Outcome) -> Iterator[str]:
    if (status, said["valid"]) != ((0, True) if outcome.ok else (2, False)):
        yield f"check: {status}, valid {said['valid']}; reload: {outcome.result}"
    wanted = json.loads(json.dumps([error_json(error) for error in outcome.errors]))
    if said["errors"] != wanted:
        yield f"check: {[e['text'] for e in said['errors']]}; reload: {[*map(str, outcome.errors)]}"
    if "defect" in str(outcome.errors):
        yield f"a defect: {outcome.errors}"


def _misplaced(
    errors: tuple[PolicyError, ...], files: Files, found: Agreement
) -> Iterator[str]:  # fmt: skip
    """Every error names its file, and the place in it where the value stands there."""
    if not errors:
        yield "refused without an error"
    for error in errors:
        found.errors += 1
        found.messages.add(" ".join(error.message.split()[:3]))
        if error.source not in files and error.source not in FILES:
            if not error.source.startswith(("environment ", *(f"{name}:" for name in FILES))):
                yield f"no such file: {error}"
        elif error.place is None:
            if _stands_in(error, files.get(error.source)):
                yield f"it stands in the file, and no place is named: {error}"
        else:
            found.placed += 1
            if not _inside(error, files.get(error.source, b"")):
                yield f"there is no such place: {error}"


def _stands_in(error: PolicyError, raw: bytes | None) -> bool:
    """Whether the error's key, or something around it short of the whole file, is written there."""
    if raw is None or not error.key:
        return False
    document = parse(raw)
    path = parts(error.key)[1:]
    return any(path[:end] in document.keys for end in range(1, len(path) + 1))


def _inside(error: PolicyError, raw: bytes) -> bool:
    assert error.place is not None
    lines = raw.decode("utf-8-sig", "replace").splitlines() or [""]
    lines.append("")
    line, column = error.place.line, error.place.column
    return 1 <= line <= len(lines) and 1 <= column <= len(lines[line - 1]) + 2
