"""What commands say of a state folder that their user may not look into, or whose disk gives no
locks.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.command import mlxd
from tests.support.daemon import free_port, write_policies
from tests.support.guarded import guarded


@pytest.mark.parametrize(
    "command",
    [
        ["ps"],
        ["models", "list"],
        ["explain"],
        ["stop"],
        ["status"],
        ["logs"],
        ["policy", "history"],
        ["policy", "reload"],
        ["keys", "list"],
    ],
    ids=" ".join,
)
def test_nothing_is_claimed_of_it(command: list[str], tmp_path: Path) -> None:
    words = [*command, *places(tmp_path)]
    environment = {"MLXD_PORT": str(free_port())}
    mlxd(*words, environment=environment)  # what it imports may be where only root looks
    with guarded(tmp_path / "state"):
        done = mlxd(*words, environment=environment)
    assert done.returncode == 1
    assert "cannot be looked at from here: permission denied; try as its user\n" in done.stderr
    assert_none_is_missed(done)


def test_for_programs_it_is_not_known_whether_one_runs(tmp_path: Path) -> None:
    words = ["status", "--json", *places(tmp_path)]
    environment = {"MLXD_PORT": str(free_port())}
    mlxd(*words, environment=environment)
    with guarded(tmp_path / "state"):
        done = mlxd(*words, environment=environment)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "unknown")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["ps"], 1),
        (["explain"], 1),
        (["stop"], 1),
        (["status"], 1),
        (["status", "--json"], 1),
        (["logs"], 1),
        (["policy", "reload"], 1),
        (["keys", "add", "agents"], 0),
        (["doctor", "--prove"], 1),
    ],
    ids=str,
)
def test_nor_where_no_lock_tells_of_a_daemon(
    command: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    words = [*command, *places(tmp_path)]
    (tmp_path / "state" / "mlxd.lock").touch()
    monkeypatch.setattr("mlxd.core.instance._is_held", without_locks)
    monkeypatch.setattr("mlxd.cli.prove.command.own_daemon", None)  # none is started beside it
    monkeypatch.chdir(tmp_path)
    done = mlxd(*words, environment={"MLXD_PORT": str(free_port())})
    assert done.returncode == status
    if "--json" in command:
        assert json.loads(done.stdout)["status"] == "unknown"
    else:
        assert "cannot be told: its disk gives no lock" in done.stderr
    assert_none_is_missed(done)


def assert_none_is_missed(done: CompletedProcess[str]) -> None:
    for claim in ("no mlxd runs", "is not running", "mlxd serve", "no generation is kept"):
        assert claim not in done.stdout + done.stderr


def places(tmp_path: Path) -> list[str]:
    (tmp_path / "state").mkdir()
    folder = write_policies(tmp_path / "policies", {})
    return ["--state", str(tmp_path / "state"), "--policies", str(folder)]
