"""What a command says where stdout cannot be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.policy.keyring import Key, parse
from tests.support.long import short

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
PYTHON = f"exec {sys.executable} -m mlxd"


def said(tmp_path: Path, command: str, to: str) -> tuple[int, str]:
    """Exit status and stderr. `to`: as a shell writes it."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"{PYTHON} {command} {to}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "MLXD_STATE": str(tmp_path / "state")},
    )
    return done.returncode, done.stderr


def test_a_stderr_that_was_closed_is_no_place_for_a_log() -> None:
    """Its number is taken all the same: what is opened later must not get it."""
    program = (
        "import os, sys; from mlxd.cli import stdout; stdout.guard();"
        "from mlxd.telemetry import logs; print('lost', file=sys.stderr);"
        "print(logs._descriptor(), os.open(os.devnull, os.O_RDONLY) > 2)"
    )
    command = ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "-1 True\n"


WAYS = [
    pytest.param("> /dev/full", "No space left on device", marks=FULL),
    (">&-", "Bad file descriptor"),
]


@pytest.mark.parametrize(("to", "why"), WAYS)
@pytest.mark.parametrize(
    "command",
    [
        "status --json",
        pytest.param("policy explain limits", marks=pytest.mark.slow),
        "policy schema",  # more than a buffer at once
        pytest.param("models list --json", marks=pytest.mark.slow),
        "--help",
    ],
)
def test_it_is_one_line(tmp_path: Path, command: str, to: str, why: str) -> None:
    assert said(tmp_path, command, to) == (1, f"mlxd: stdout cannot be written: {why}\n")


@pytest.mark.parametrize(("to", "why"), WAYS)
@pytest.mark.parametrize("options", short(["", "--json"], ""))
def test_a_key_that_nobody_has_seen_is_told(
    tmp_path: Path, options: str, to: str, why: str
) -> None:
    err = ""
    for command in ("add anna", "rotate"):
        old = keys(tmp_path)[-1].id if command == "rotate" else ""
        status, err = said(tmp_path, f"keys {command} {old} {options}", to)
        new = keys(tmp_path)[-1].id
        assert status == 1
        assert f"the key {new} was made and could not be shown: {why}\n" in err
        assert f"mlxd keys revoke {new}\n" in err
        assert not re.search("mlxd_|Traceback", err)
    assert "counts until" in err, "what became of the old one"


def test_who_stops_reading_is_told_nothing(tmp_path: Path) -> None:
    assert said(tmp_path, "policy schema", "| true") == (0, "")


def keys(tmp_path: Path) -> tuple[Key, ...]:
    file = tmp_path / "state" / "keys.yaml"
    return parse(file.read_bytes(), "keys.yaml").keys if file.exists() else ()
