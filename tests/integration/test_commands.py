"""The command line against a running daemon, and what `mlxd serve` refuses to start with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import command
from tests.support.daemon import Daemon, free_port, write_policies

pytestmark = pytest.mark.mlx

USAGE = 2


def _mlxd(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLXD_", "MLX_API_"))}
    if arguments[0] != "serve":
        return command.mlxd(*arguments, environment={**clean, **environment})
    return subprocess.run(
        [sys.executable, "-m", "mlxd", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**clean, **environment},
    )


def _refused_start(tmp_path: Path, files: dict[str, str], *flags: str, **environment: str) -> str:
    """Start with policies that are refused; returns what was said."""
    policies = write_policies(tmp_path / "policies", files)
    done = _mlxd(
        *("serve", "--policies", policies, "--state", tmp_path / "state", *flags), **environment
    )
    assert done.returncode == USAGE, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state" / "mlxd.pid").exists()
    return done.stderr


def test_status_shows_the_running_daemon(served: Daemon) -> None:
    done = _mlxd("status", "--state", served.state)
    assert done.returncode == 0
    assert f"pid {served.pid}" in done.stdout
    assert f":{served.port}" in done.stdout
    assert "requests" in done.stdout


def test_status_in_json_is_the_body_of_health(served: Daemon) -> None:
    done = _mlxd("status", "--json", "--state", served.state)
    assert done.returncode == 0
    assert json.loads(done.stdout).keys() == {*served.health(), "recent_events", "log"}


def test_status_without_a_daemon_fails_in_words(tmp_path: Path) -> None:
    port = str(free_port())
    done = _mlxd("status", "--state", tmp_path, MLX_API_PORT=port)
    assert done.returncode == 1
    assert "not running" in done.stderr
    done = _mlxd("status", "--json", "--state", tmp_path, MLX_API_PORT=port)
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "down"


def test_status_finds_a_daemon_by_the_old_variables(served: Daemon, tmp_path: Path) -> None:
    for environment in (
        {"MLX_API_PORT": str(served.port)},
        {"MLX_API_URL": served.url},
    ):
        done = _mlxd("status", "--json", "--state", tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["pid"] == served.pid


def test_status_imports_neither_a_server_nor_a_validator(served: Daemon) -> None:
    code = (
        "import sys; from mlxd.cli import main; "
        f"status = main(['status', '--json', '--state', {str(served.state)!r}]); "
        "heavy = {'aiohttp', 'pydantic', 'asyncio', 'yaml', 'psutil'} & set(sys.modules); "
        "print(heavy, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0
    assert done.stderr.strip() == "set()"


def test_policy_check_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    good = write_policies(tmp_path / "good", {"limits": "concurrency: {max_in_flight: 3}\n"})
    done = _mlxd("policy", "check", "--policies", good, "--state", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid" in done.stdout
    bad = write_policies(
        tmp_path / "bad",
        {"limits": "concurrency:\n  max_in_fligth: 3\n", "timeouts: x": ""},
    )
    done = _mlxd("policy", "check", "--policies", bad, "--state", tmp_path)
    assert done.returncode == USAGE
    assert "limits.yaml:3" in done.stderr
    assert "max_in_flight" in done.stderr, "the nearest name"
    done = _mlxd("policy", "check", "--json", "--policies", bad, "--state", tmp_path)
    assert done.returncode == USAGE
    assert json.loads(done.stdout)["valid"] is False


@pytest.mark.parametrize(
    ("kind", "text", "place"),
    [
        ("limits", "concurrency:\n  max_in_flight: many\n", "limits.yaml:3"),
        ("server", "listen: [\n", "server.yaml:"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # as the first: a value that cannot be
            for case in (
                ("limits", "concurrency:\n  max_in_flight: 0\n", "limits.yaml:3"),
                ("timeouts", "generation: 5\n", "timeouts.yaml:2"),
                ("models", "dirs: [relative]\n", "models.yaml:2"),
                ("server", "http: {max_body: 8XB}\n", "server.yaml:2"),
            )
        ),
    ],
)
def test_a_policy_that_is_refused_stops_the_start_with_its_line(
    tmp_path: Path, kind: str, text: str, place: str
) -> None:
    assert place in _refused_start(tmp_path, {kind: text})


def test_a_bind_beyond_this_machine_is_refused_with_both_places(tmp_path: Path) -> None:
    said = _refused_start(tmp_path, {"server": "listen:\n  host: 0.0.0.0\n"})
    assert "server.yaml:3" in said
    assert "clients.yaml" in said
    assert "auth" in said
    said = _refused_start(tmp_path, {}, "--host", "0.0.0.0")
    assert "--host" in said
    assert "clients.yaml" in said
    said = _refused_start(tmp_path, {}, MLXD_HOST="::")
    assert "MLXD_HOST" in said


def test_a_bind_beyond_this_machine_that_is_written_down_is_served_with_a_warning_until_a_stop(
    start: Any,
) -> None:
    policies = {"server": "listen: {host: 0.0.0.0}\n", "clients": "auth: {required: false}\n"}
    daemon: Daemon = start(policies)
    warnings = daemon.health()["warnings"]
    assert any("0.0.0.0" in warning and "other machines" in warning for warning in warnings)
    assert "other machines" in daemon.log_text()
    other = httpx.get(f"{daemon.url}/api/version", headers={"Host": "some.name.example"})
    assert other.status_code == 200, "the Host check is for loopback only"
    _stops(daemon)


def _stops(daemon: Daemon) -> None:
    """By `mlxd stop`, which waits until it is gone."""
    done = _mlxd("stop", "--state", daemon.state)
    assert done.returncode == 0
    assert str(daemon.pid) in done.stdout
    assert daemon.process.wait(5) == 0
    again = _mlxd("stop", "--state", daemon.state)
    assert again.returncode == 1
    assert "no mlxd runs" in again.stderr


def test_a_stop_ends_the_daemon_alone_whatever_its_file_says(start: Any) -> None:
    """A pid of another container is somebody else's here."""
    daemon: Daemon = start({})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (daemon.state / "mlxd.pid").write_text(f"{stranger.pid}\n")
        done = _mlxd("stop", "--state", daemon.state)
        assert (done.returncode, daemon.process.wait(5)) == (0, 0)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.slow
def test_nor_does_one_from_where_its_folder_has_another_path(start: Any, tmp_path: Path) -> None:
    """As that of a container has for the machine."""
    daemon: Daemon = start({})
    here = tmp_path / "here"
    daemon.state.rename(here)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (here / "mlxd.pid").write_text(f"{stranger.pid}\n")
        done = _mlxd("stop", "--state", here)
        assert stranger.poll() is None
        stranger.kill()
    assert (done.returncode, daemon.process.wait(5)) == (0, 0)


def test_two_ports_that_disagree_are_refused(tmp_path: Path) -> None:
    said = _refused_start(tmp_path, {}, MLXD_PORT="11500", MLX_API_PORT="11501")
    assert "MLXD_PORT" in said
    assert "MLX_API_PORT" in said
    assert "11500" in said


@pytest.mark.parametrize(
    "variable", ["MLX_API_PORT", pytest.param("MLXD_PORT", marks=pytest.mark.slow)]
)
def test_the_port_of_the_environment_is_served_on(tmp_path: Path, variable: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlxd", "serve", "--state", str(tmp_path / "s")]
    command += ["--policies", str(write_policies(tmp_path / "p", {"models": "dirs: []\n"}))]
    environment = {**os.environ, variable: str(port), "MLX_API_WORKERS": "4"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        from tests.integration.talking import eventually

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers, "it answers there", within=40)
        warnings = httpx.get(f"http://127.0.0.1:{port}/health").json()["warnings"]
        assert any("MLX_API_WORKERS" in warning for warning in warnings)
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_port_that_is_no_port_is_refused(tmp_path: Path) -> None:
    assert "--port" in _refused_start(tmp_path, {}, "--port", "eleven")
    assert "--port" in _refused_start(tmp_path, {}, "--port", "70000")


def test_env_points_clients_at_the_daemon(served: Daemon) -> None:
    done = _mlxd("env", "--state", served.state)
    assert f"OPENAI_BASE_URL={served.url}/v1" in done.stdout
    assert f"OLLAMA_HOST=127.0.0.1:{served.port}" in done.stdout


def test_no_command_touches_ollamas_port(tmp_path: Path) -> None:
    """`status` without a daemon asks at mlxd's own port and nowhere else."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 11434))
        except OSError:
            pytest.skip("something listens on 11434 here")
        other.listen()
        other.setblocking(False)
        _mlxd("status", "--state", tmp_path)
        with pytest.raises(BlockingIOError):
            other.accept()
