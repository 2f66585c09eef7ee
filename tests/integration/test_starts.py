"""A daemon that keeps dying serves without models until it is reset, whoever restarts it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import NO_LIMITS
from tests.integration.talking import ENDLESS, body_for, eventually, say
from tests.support import command
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

POLICIES = {"limits": NO_LIMITS, "supervision": "daemon: {max_restarts: 1}\n"}


def _reset(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command.mlxd("service", "reset", "--state", state, *arguments)


def _killed(folder: Path, zoo: Path, times: int, policies: dict[str, str] | None = None) -> None:
    for _ in range(times):
        with daemon(folder, models=zoo, policies=policies or POLICIES) as running:
            assert running.http.get("/readyz").status_code == 200
            running.process.kill()
            running.process.wait(5)


def _check_held(running: Daemon) -> None:
    for path in ("/api/generate", "/v1/completions"):
        refused = running.http.post(path, json=body_for(path, ENDLESS, "x", tokens=1))
        assert (refused.status_code, refused.headers["x-mlxd-code"]) == (503, "starts_held")
        assert refused.headers["retry-after"] == "60"
        assert "supervision.daemon.max_restarts: 1 (policies/supervision.yaml:2)" in refused.text
    loaded = running.http.post("/api/generate", json={"model": ENDLESS})
    assert loaded.headers["x-mlxd-code"] == "starts_held"
    ready = running.http.get("/readyz")
    assert (ready.status_code, "mlxd service reset" in ready.text) == (503, True)
    health = running.health()
    assert health["status"] == "critical"
    assert any("ended 2 times" in warning for warning in health["warnings"])
    assert running.http.get("/livez").status_code == 200
    assert running.workers() == []


def test_kills_in_a_row_hold_the_daemon_until_it_is_reset(tmp_path: Path, zoo: Path) -> None:
    _killed(tmp_path, zoo, 2)
    listed = {"models": f"dirs: [{zoo}]\npreload: [tiny-a]\n"}
    with daemon(tmp_path, models=zoo, policies=POLICIES | listed) as running:
        _check_held(running)
        assert "starts_held" in {e["type"] for e in running.admin.get("/admin/events")["events"]}
        done = _reset(running.state)
        assert (done.returncode, done.stdout) == (0, "models may be loaded again\n")
        eventually(lambda: running.http.get("/readyz").status_code == 200, "it is ready")
        assert say(running, ENDLESS, "x", tokens=2)
        eventually(lambda: len(running.workers()) == 2, "what is listed is loaded, too")
        assert running.health()["status"] != "critical"
        assert json.loads(_reset(running.state, "--json").stdout) == {"was_held": False}


@pytest.mark.slow
def test_a_hold_outlives_an_end_that_was_asked_for(tmp_path: Path, zoo: Path) -> None:
    _killed(tmp_path, zoo, 2)
    for _ in range(2):
        with daemon(tmp_path, models=zoo, policies=POLICIES) as running:
            assert running.http.get("/readyz").status_code == 503
            assert running.stop() == 0
    done = _reset(tmp_path / "state")
    assert (done.returncode, done.stdout) == (0, "models may be loaded again\n")
    with daemon(tmp_path, models=zoo, policies=POLICIES) as running:
        assert running.http.get("/readyz").status_code == 200


@pytest.mark.slow
def test_an_end_that_was_asked_for_breaks_the_series(tmp_path: Path, zoo: Path) -> None:
    for _ in range(2):
        _killed(tmp_path, zoo, 1)
        with daemon(tmp_path, models=zoo, policies=POLICIES) as running:
            assert running.http.get("/readyz").status_code == 200
            assert running.stop() == 0


@pytest.mark.slow
def test_the_default_allows_ten(tmp_path: Path) -> None:
    """What is written down counts, whoever wrote it."""
    for unclean, status in ((9, 200), (10, 503)):
        state = tmp_path / f"{unclean}" / "state"
        state.mkdir(parents=True)
        said = {"schema": 1, "unclean": unclean, "recent": [time.time() - 60.0] * 5}
        (state / "starts.json").write_text(json.dumps(said | {"held": False, "running": True}))
        with daemon(state.parent) as running:
            assert running.http.get("/readyz").status_code == status


def test_a_reset_where_nothing_is(tmp_path: Path) -> None:
    done = _reset(tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (0, "nothing was held\n")


def test_a_reset_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    done = _reset(tmp_path / "state")
    assert (done.returncode, done.stdout) == (1, "")
    assert "starts.json" in done.stderr
    done = _reset(tmp_path / "state", "--json")
    assert "starts.json" in json.loads(done.stdout)["error"]


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    for arguments in ([], ["restart"], ["reset", "--nonsense"]):
        assert command.mlxd("service", *arguments).returncode == 2
