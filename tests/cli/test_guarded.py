"""What commands say of a state folder that their user may not look into."""

from __future__ import annotations

import json
from pathlib import Path

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
    for claim in ("no mlxd runs", "is not running", "mlxd serve", "no generation is kept"):
        assert claim not in done.stdout + done.stderr


def test_for_programs_it_is_not_known_whether_one_runs(tmp_path: Path) -> None:
    words = ["status", "--json", *places(tmp_path)]
    environment = {"MLXD_PORT": str(free_port())}
    mlxd(*words, environment=environment)
    with guarded(tmp_path / "state"):
        done = mlxd(*words, environment=environment)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "unknown")


def places(tmp_path: Path) -> list[str]:
    (tmp_path / "state").mkdir()
    folder = write_policies(tmp_path / "policies", {})
    return ["--state", str(tmp_path / "state"), "--policies", str(folder)]
