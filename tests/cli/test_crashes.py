"""`mlxd crashes` reads what is on the disk; no daemon is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli import main
from mlxd.cli.events import line_of
from mlxd.telemetry.crashes import FILE

CRASH: dict[str, Any] = {
    "schema": 1, "kind": "worker", "at": 1_700_000_000.0,
    "message": "the worker of m ended: SIGILL",
    "model": "m", "pid": 7, "running": 3, "step": 12, "memory": 21.5 * 2**30, "stderr": "a\nb",
}  # fmt: skip


def record(state: Path, *crashes: dict[str, Any]) -> None:
    lines = (json.dumps(CRASH | crash) for crash in crashes)
    (state / FILE).write_text("\n".join(lines) + "\n{cut o")


def shown(state: Path, *arguments: str) -> int:
    return main(["crashes", "--state", str(state), *arguments])


def test_a_crash_is_told_with_its_numbers_and_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, {"memory": 3 * 2**30})
    assert shown(tmp_path) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("  worker  the worker of m ended: SIGILL")
    assert rest == ["    3 requests, 3.0 GiB held, step 12, pid 7", "    | a", "    | b"]


def test_the_last_ones_are_shown_the_newest_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, {"step": 1}, {"step": 2}, {"step": 3})
    assert shown(tmp_path, "-n", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)["crashes"]
    assert [crash["step"] for crash in found] == [2, 3]


def test_nothing_of_a_record_forges_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, {"message": "a\nb\x1b[2J", "stderr": "\x1b[31mred", "pid": None})
    assert shown(tmp_path) == 0
    out = capsys.readouterr().out
    assert "a\\nb\\x1b[2J" in out
    assert "\x1b" not in out


def test_without_any_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(tmp_path) == 0
    assert capsys.readouterr().out == f"no crash is recorded in {tmp_path}\n"


def test_a_file_that_cannot_be_read_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / FILE).mkdir()
    assert shown(tmp_path) == 1
    assert "Is a directory" in capsys.readouterr().err
    assert shown(tmp_path, "--json") == 1
    assert "Is a directory" in json.loads(capsys.readouterr().out)["error"]


def test_an_event_is_one_line_too() -> None:
    event = {"id": 5, "at": 1_700_000_000.0, "type": "load", "message": "a\nb", "data": {}}
    assert line_of(event).endswith("  load               a\\nb  [5]")
