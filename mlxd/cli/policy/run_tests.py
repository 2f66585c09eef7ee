"""`mlxd policy test`: the policies' own tests, on a virtual clock against the real decisions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlxd.cli.models.asking import print_json
from mlxd.cli.policy.here import here, refused
from mlxd.settings import SettingsRefused
from mlxd.simulate.harness import run


def run_tests(
    policies: str | None, state: str | None, paths: Sequence[str], *, as_json: bool
) -> int:
    """Exit status: 0 all passed, 1 some failed, 2 the policies or the test files are wrong."""
    try:
        this = here(policies, state)
    except SettingsRefused as error:
        return refused(error, as_json=as_json)
    report = run(this.folder, [Path(path) for path in paths])
    if as_json:
        print_json(report.as_json())
    else:
        print(report, file=sys.stderr if report.errors else sys.stdout)
    return report.exit_status
