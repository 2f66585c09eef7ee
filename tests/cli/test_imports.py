"""What a command imports is most of what it takes: that much, and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mlxd

HEAVY = {
    "aiohttp",
    "asyncio",
    "msgspec",
    "mlx",
    "psutil",
    "pydantic",
    "uvloop",
    "watchfiles",
    "yaml",
}
PROGRAM = """
import json, sys
from mlxd.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps([*sys.modules]))
"""


def imported_by(*arguments: str) -> set[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    folder = Path(mlxd.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "command", [["status"], ["stop"], ["ps"], ["models", "list"], ["events"], ["--version"]]
)
def test_a_command_that_asks_the_daemon_imports_nothing_else(
    command: list[str], tmp_path: Path
) -> None:
    places = [] if command[0].startswith("-") else ["--state", str(tmp_path)]
    places += ["--policies", str(tmp_path)] if places else []
    found = imported_by(*command, *places)
    assert {name.partition(".")[0] for name in found} & HEAVY == set()
    ours = {name.split(".")[1] for name in found if name.startswith("mlxd.")}
    assert ours <= {"cli", "core"}


def test_status_imports_little_of_the_standard_library(tmp_path: Path) -> None:
    """Each of these takes longer than the daemon to answer."""
    places = ["--state", str(tmp_path), "--policies", str(tmp_path)]
    slow = {"http.client", "email", "ssl", "dataclasses", "inspect", "logging", "datetime"}
    assert not imported_by("status", *places) & slow


def test_a_check_of_policies_imports_what_judges_them(tmp_path: Path) -> None:
    found = imported_by("policy", "check", "--policies", str(tmp_path), "--state", str(tmp_path))
    assert {name.partition(".")[0] for name in found} & (HEAVY - ALSO) == set()
    ours = {name.split(".")[1] for name in found if name.startswith("mlxd.")}
    assert ours <= {"cli", "core", "policy", "settings"}


ALSO = {"asyncio", "pydantic", "yaml"}
"""Of the heavy ones, what policies are read with."""
