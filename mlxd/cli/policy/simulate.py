"""`mlxd policy simulate`: recorded traffic against other policies, before they are in force."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxd.cli import exits
from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.here import Here, here, refused
from mlxd.daemon.traffic import folder_of
from mlxd.policy.load import PolicyErrors, load
from mlxd.policy.policy_set import PolicySet
from mlxd.settings import SettingsRefused
from mlxd.simulate.traffic import expect, image
from mlxd.simulate.traffic.compare import compare
from mlxd.simulate.traffic.expect import Placed, Verdict, judge
from mlxd.simulate.traffic.reading import Log, NoTraffic, read
from mlxd.simulate.traffic.report import Comparison


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was asked for."""

    traffic: Sequence[str]
    baseline: str | None
    expect: str | None
    image: str | None
    as_json: bool


class _Wrong(Exception):
    """Something that was named cannot be used."""


def simulate(policies: str | None, state: str | None, asked: Asked) -> int:
    """Exit status: 0 done, 1 an objective is missed, 2 something that was named is wrong."""
    try:
        this = here(policies, state)
        after = this.load()
        before = load(Path(asked.baseline), this.overrides) if asked.baseline else None
        objectives = expect.read(Path(asked.expect)) if asked.expect else ()
        _check_image(asked.image)
        log = _read(this, after, asked.traffic)
        comparison = compare(log, after, before, _tell)
        if asked.image:
            _write(Path(asked.image), image.svg(comparison))
    except (SettingsRefused, PolicyErrors) as error:
        return refused(error, as_json=asked.as_json)
    except (NoTraffic, _Wrong) as error:
        if asked.as_json:
            print_json({"valid": False, "errors": [{"text": str(error), "message": str(error)}]})
        else:
            print(error, file=sys.stderr)
        return exits.USAGE
    return _show(comparison, objectives, as_json=asked.as_json)


def _read(this: Here, policies: PolicySet, paths: Sequence[str]) -> Log:
    """Raises NoTraffic."""
    named = [Path(path) for path in paths]
    return read(named or [folder_of(policies, this.state)], _tell)


def _show(comparison: Comparison, objectives: Sequence[Placed], *, as_json: bool) -> int:
    verdicts = judge(objectives, comparison.after)
    missed = [verdict for verdict in verdicts if not verdict.holds]
    if as_json:
        expected = [verdict.as_json() for verdict in verdicts]
        print_json(comparison.as_json() | {"expect": expected, "held": not missed})
    else:
        print(comparison)
        _print_verdicts(verdicts)
    return exits.FAILED if missed else exits.DONE


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    if verdicts:
        print()
    for verdict in verdicts:
        print(verdict)


def _tell(done: str, number: int) -> None:
    """Of what takes a while."""
    print(f"{done} {number}", file=sys.stderr)


def _check_image(image: str | None) -> None:
    if image is not None and not image.endswith(".svg"):
        raise _Wrong(f"{image}: expected a name that ends with .svg")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _Wrong(f"{file}: cannot be written: {error.strerror}") from None
