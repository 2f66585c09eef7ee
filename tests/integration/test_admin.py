"""The admin socket of a real daemon, and `mlxd policy` against it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlxd.policy.watch import RESCAN_SECONDS
from mlxd.server.admin_socket import MAX_PATH_BYTES
from tests.support import command
from tests.support.daemon import Daemon, daemon, free_port, write_policies, write_whole

pytestmark = pytest.mark.mlx

Json = dict[str, Any]
SLOTS = "concurrency: {{max_in_flight: {}}}\nrate_limit: []\n"
SLOT_KEY = "limits.concurrency.max_in_flight"
UNASKED_SECONDS = RESCAN_SECONDS - 0.5
"""An edit that is told of is in force before the watcher looks by itself."""


def edit(running: Daemon, **files: str) -> None:
    write_policies(running.state.parent / "policies", files)


def mlxd(running: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = running.state.parent
    places = ["--state", str(running.state), "--policies", str(folder / "policies")]
    return command.mlxd("policy", *arguments, *places)


def asked(running: Daemon, *arguments: str) -> tuple[int, Json]:
    done = mlxd(running, *arguments, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def until(fact: Callable[[], object], within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    policies = {"limits": SLOTS.format(4), "clients": "", "server": ""}
    with daemon(tmp_path_factory.mktemp("admin"), models=models, policies=policies) as running:
        yield running


@pytest.fixture
def running(shared: Daemon) -> Iterator[Daemon]:
    """The daemon of all these tests; the policy files that it began with are put back."""
    files = {file: file.read_text() for file in shared.policies.iterdir()}
    values = effective(shared)
    yield shared
    assert {*shared.policies.iterdir()} == files.keys()
    for file, text in files.items():
        write_whole(file, text)
    assert shared.reload()["result"] in ("applied", "unchanged")
    assert effective(shared) == values
    assert shared.health()["status"] == "healthy"


def effective(running: Daemon) -> dict[str, str]:
    values = running.admin.get("/admin/policy/effective")["values"]
    return {key: value["value"] for key, value in values.items()}


@pytest.fixture
def admin(running: Daemon) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(running.state / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        yield client


def test_the_socket_is_for_its_owner(running: Daemon) -> None:
    path = running.state / "admin.sock"
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads((running.state / "daemon.json").read_text())["admin"] == str(path)


@pytest.mark.slow
def test_a_stale_socket_of_a_killed_daemon_is_no_obstacle(
    start_daemon: Callable[..., Daemon],
) -> None:
    first = start_daemon()
    first.process.kill()
    first.process.wait()
    stale = first.state / "admin.sock"
    assert stale.exists()
    second = start_daemon()
    second.stop()
    stale.replace(second.state / "admin.sock")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLXD_", "MLX_API_"))}
    again = subprocess.Popen(
        [sys.executable, "-m", "mlxd", "serve", "--port", str(second.port), "--state",
         str(second.state), "--policies", str(second.state.parent / "policies")],
        env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: asked(second, "explain", "server.drain")[0] == 0, 20.0)
        until((second.state / "daemon.json").exists, 20.0)
    finally:
        again.send_signal(signal.SIGTERM)
        again.wait(20)


@pytest.mark.slow
def test_a_path_too_long_for_a_socket_gets_a_short_one(
    tmp_path: Path,
) -> None:
    deep = tmp_path / ("d" * MAX_PATH_BYTES)
    deep.mkdir()
    with daemon(deep, policies={}) as running:
        path = Path(json.loads((running.state / "daemon.json").read_text())["admin"])
        assert len(os.fsencode(path)) <= MAX_PATH_BYTES
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert asked(running, "reload")[0] == 0


def test_over_tcp_it_is_for_administrators(running: Daemon) -> None:
    for method, path in (
        ("GET", "/admin/policy"), ("GET", "/admin/policy/effective"),
        ("POST", "/admin/policy/reload"), ("POST", "/admin/policy/rollback?gen=1"),
        ("GET", "/admin/events"), ("GET", "/admin/nowhere"),
    ):  # fmt: skip
        assert running.http.request(method, path).status_code == 403


def test_the_host_wall_does_not_lock_the_operator_out(running: Daemon, admin: httpx.Client) -> None:
    edit(running, clients="hosts: {allow: [nobody.example]}\n")
    assert asked(running, "reload")[1]["result"] in ("applied", "unchanged")
    assert running.http.get("/health").status_code == 403
    assert admin.get("/admin/policy").status_code == 200


def test_what_holds_those_without_a_key_does_not_hold_the_operator(
    running: Daemon, admin: httpx.Client
) -> None:
    edit(running, clients="tenants: {anonymous: {models: [none], daily_tokens: 1}}\n")
    assert asked(running, "reload")[1]["result"] in ("applied", "unchanged")
    body = {"model": "tiny-a", "prompt": "x", "max_tokens": 2}
    assert running.http.post("/v1/completions", json=body).status_code == 403
    for _ in range(2):
        assert admin.post("/admin/completions", json=body, timeout=60).status_code == 200


def test_no_policy_locks_the_operator_out(running: Daemon) -> None:
    before = str(running.generation())
    edit(running, server="http: {max_headers: 1, max_header_bytes: 10B, max_body: 1B}\n")
    assert asked(running, "reload")[1]["result"] in ("applied", "unchanged")
    assert running.http.get("/health").status_code >= 400
    assert asked(running, "plan", "--set", "timeouts.queue=9s")[0] == 0
    assert asked(running, "rollback", before)[1]["result"] == "applied"


def test_a_folder_in_the_place_of_the_admin_socket_is_set_aside(
    models: Path, tmp_path: Path
) -> None:
    (tmp_path / "state" / "admin.sock").mkdir(parents=True)
    with daemon(tmp_path, models=models, policies={}) as running:
        assert "admin.sock is set aside" in running.log_text()
        assert running.admin.get("/admin/policy")["generation"] >= 1


def test_a_command_that_names_no_folder_means_the_daemons(running: Daemon) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLXD_")}
        places = ("--state", running.state)
        return command.mlxd("policy", *arguments, *places, environment=environment)

    folder = running.state.parent / "policies"
    assert call("check").stdout.startswith(f"{folder}: valid\n")
    assert "max_in_flight: 5 -> 4" in call("diff", "defaults").stdout


def test_a_command_that_names_another_folder_means_its_files(
    running: Daemon, tmp_path: Path
) -> None:
    """Not those of the daemon, and neither by another way to them."""

    def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        places = ("--state", running.state, "--policies", folder)
        return command.mlxd("policy", *arguments, *places)

    other = write_policies(tmp_path / "other", {"limits": SLOTS.format(7)})
    done = call(other, "diff")
    assert done.returncode == 1
    assert "max_in_flight: 4 -> 7" in done.stdout
    assert call(other, "explain", "max_in_flight").stdout.startswith(f"{SLOT_KEY}: 7\n")
    plan = call(other, "plan", "--set", f"{SLOT_KEY}=8").stdout
    assert f"{SLOT_KEY}: 7 -> 8" in plan
    assert "no daemon runs with these files" in plan
    (tmp_path / "link").symlink_to(running.policies)
    assert call(tmp_path / "link", "diff").stdout == "no value differs\n"
    assert " run now, 8 may" in call(tmp_path / "link", "plan", "--set", f"{SLOT_KEY}=8").stdout


class TestReload:
    """R14: the outcome of that very attempt."""

    def test_an_edit_is_applied_with_its_changes(self, running: Daemon) -> None:
        before = running.generation()
        edit(running, limits=SLOTS.format(7))
        status, outcome = asked(running, "reload")
        assert status == 0
        if outcome["result"] == "applied":  # else the watcher was faster
            assert [c["new"] for c in outcome["changes"]] == ["7"]
            assert outcome["by"].startswith(f"uid {os.geteuid()}, pid ")
        assert running.health()["max_concurrent"] == 7
        assert running.health()["policy"]["generation"] == outcome["generation"] == before + 1

    def test_a_refused_edit_is_shown_everywhere_and_mended(self, running: Daemon) -> None:
        edit(running, limits=SLOTS.format("seven"))
        done = mlxd(running, "reload")
        assert done.returncode == 2
        words = (
            "limits.yaml:2:15: limits.concurrency.max_in_flight:"
            ' expected an integer >= 1, got "seven"'
        )
        assert words in done.stderr
        health = running.health()
        assert (health["status"], health["policy"]["errors"]) == ("warning", [words])
        assert any(words in warning for warning in health["warnings"])
        assert words.partition(": ")[2].replace('"', '\\"') in running.log_text()
        metrics = running.http.get("/metrics").text
        assert "mlxd_policy_last_reload_successful 0.0" in metrics
        assert 'mlxd_policy_last_error_info{file="limits.yaml"' in metrics
        assert health["max_concurrent"] == 4
        edit(running, limits=SLOTS.format(4))
        until(lambda: running.health()["status"] == "healthy", UNASKED_SECONDS)
        assert "mlxd_policy_last_reload_successful 1.0" in running.http.get("/metrics").text

    def test_a_hangup_signal_reloads_and_logs_the_outcome(self, running: Daemon) -> None:
        before = running.generation()
        edit(running, limits=SLOTS.format(8))
        running.process.send_signal(signal.SIGHUP)
        until(lambda: running.health()["max_concurrent"] == 8)
        edit(running, limits=SLOTS.format("x"))
        running.process.send_signal(signal.SIGHUP)
        words = f"policies refused, generation {before + 1} stays"
        until(lambda: words in running.log_text())

    def test_the_service_manager_is_told_when_it_begins_and_ends_and_its_socket_goes(
        self, start_daemon: Callable[..., Daemon], tmp_path: Path
    ) -> None:
        path = tmp_path / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(path))
            manager.settimeout(10)
            running = start_daemon(environment={"NOTIFY_SOCKET": str(path)})
            ready = manager.recv(4096).decode()
            url = f"http://127.0.0.1:{running.port}"
            assert ready == f"READY=1\nSTATUS=serving on {url}, policies generation 1"
            running.process.send_signal(signal.SIGHUP)
            begun = manager.recv(4096).decode()
            assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=")
            stamp = int(begun.rpartition("=")[2])
            assert 0 <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 - stamp < 10_000_000
            assert manager.recv(4096).startswith(b"READY=1\nSTATUS=policies unchanged")
            edit(running, limits=SLOTS.format(9))
            told = manager.recv(4096).decode()
            assert told == f"STATUS=serving on {url}, policies generation 2"
            running.process.send_signal(signal.SIGTERM)
            ending = manager.recv(4096).decode()
            assert ending.startswith("STOPPING=1\nEXTEND_TIMEOUT_USEC=")
            assert int(ending.rpartition("=")[2]) > 60e6, "grace, and what else a stop may take"
            assert manager.recv(4096).startswith(b"STATUS=stopping, 0 requests under way: ")
            assert running.process.wait(20) == 0
        assert not (running.state / "admin.sock").exists()

    def test_an_event_tells_of_each_attempt(self, running: Daemon, admin: httpx.Client) -> None:
        asked(running, "reload")
        events = admin.get("/admin/events?types=reload").json()["events"]
        assert [event["type"] for event in events] == ["reload"] * len(events)
        assert events[0]["data"]["trigger"] == "start"
        assert events[-1]["data"]["trigger"] == "admin"
        later = admin.get(f"/admin/events?since={events[-1]['id'] - 1}").json()["events"]
        assert later == events[-1:]


class TestEffective:
    def test_every_value_has_its_source(self, running: Daemon, admin: httpx.Client) -> None:
        """R11."""
        body = admin.get("/admin/policy/effective").json()
        slots = body["values"]["limits.concurrency.max_in_flight"]
        assert (slots["value"], slots["file"], slots["line"]) == ("4", "limits.yaml", 2)
        port = body["values"]["server.listen.port"]
        assert port["source"] == "--port"
        assert all(value["source"] for value in body["values"].values())

    def test_a_line_behind_a_flag_is_shadowed(self, running: Daemon) -> None:
        edit(running, server="listen:\n  port: 11999\n")
        asked(running, "reload")
        assert running.health()["policy"]["shadowed"] == [
            "server.listen.port: 11999 (server.yaml:3) is shadowed by --port"
        ]
        _, report = asked(running, "explain", "server.listen.port")
        assert report["values"][0]["shadowed"][0]["value"] == "11999"

    def test_no_secret_is_ever_shown(self, running: Daemon, admin: httpx.Client) -> None:
        """R20: policies name secrets; what is pasted in place of a name is not repeated."""
        key = "sk-live-0123456789abcdef"
        edit(running, clients=f"auth: {{keys_file: {key}}}\n")
        done = mlxd(running, "reload")
        assert done.returncode == 2
        shown = [
            done.stdout, done.stderr, running.log_text(), running.http.get("/health").text,
            running.http.get("/metrics").text, admin.get("/admin/policy/effective").text,
            admin.get("/admin/policy").text, admin.get("/admin/events").text,
            *(file.read_text() for file in (running.state / "lkg").iterdir()),
        ]  # fmt: skip
        assert not any(key in text for text in shown)


class TestRollback:
    """R15."""

    def test_it_is_quick_and_puts_the_files_back(self, running: Daemon) -> None:
        file = running.state.parent / "policies" / "limits.yaml"
        before, first = file.read_bytes(), running.generation()
        edit(running, limits=SLOTS.format(9))
        asked(running, "reload")
        status, outcome = asked(running, "rollback", str(first))
        assert (status, outcome["result"], outcome["generation"]) == (0, "applied", first + 2)
        assert outcome["seconds"] < UNASKED_SECONDS, "it waits for none of the watcher's looks"
        assert file.read_bytes() == before
        assert running.health()["max_concurrent"] == 4
        story = asked(running, "history")[1]["history"]
        assert (story[0]["generation"], story[0]["trigger"]) == (first + 2, "rollback")
        assert story[0]["by"].startswith(f"uid {os.geteuid()}")

    def test_what_has_changed_since_it_was_seen_is_412(
        self, running: Daemon, admin: httpx.Client
    ) -> None:
        etag, first = admin.get("/admin/policy").headers["etag"], running.generation()
        to_it = f"/admin/policy/rollback?gen={first}"
        edit(running, limits=SLOTS.format(9))
        asked(running, "reload")
        late = admin.post(to_it, headers={"If-Match": etag})
        assert (late.status_code, late.headers["x-mlxd-code"]) == (412, "policy_out_of_date")
        assert running.health()["max_concurrent"] == 9
        now = admin.get("/admin/policy").headers["etag"]
        assert admin.post(to_it, headers={"If-Match": now}).status_code == 200
        assert mlxd(running, "rollback", str(first), "--etag", etag).returncode == 1

    def test_an_edit_that_is_not_in_force_is_not_lost(self, running: Daemon) -> None:
        first = str(running.generation())
        edit(running, limits=SLOTS.format(9))
        asked(running, "reload")
        edit(running, limits=SLOTS.format("oops"))
        done = mlxd(running, "rollback", first)
        assert done.returncode == 1
        assert "limits.yaml changed and not in force" in done.stderr
        assert mlxd(running, "rollback", first, "--force").returncode == 0
        assert running.health()["status"] == "healthy"

    def test_explain_tells_what_holds_until_the_next_start(self, running: Daemon) -> None:
        key = "supervision.daemon.watchdog"
        assert "meanwhile" not in mlxd(running, "explain", key).stdout
        edit(running, supervision="daemon: {watchdog: 40s}\nworker: {spares: 0}\n")
        assert running.reload()["result"] in ("applied", "unchanged")
        told = mlxd(running, "explain", key)
        assert told.stdout.startswith(f"{key}: 40s\n")
        assert "meanwhile  30s: the change waits for the next start" in told.stdout
        group = mlxd(running, "explain", "supervision.daemon").stdout
        assert f"{key}: 40s  (policies/supervision.yaml:2, 30s until the next start)" in group

    def test_explain_does_not_pass_over_a_refused_edit(self, running: Daemon) -> None:
        key = "limits.concurrency.max_in_flight"
        assert mlxd(running, "explain", key).stderr == ""
        edit(running, limits=SLOTS.format("oops"))
        until(lambda: running.health()["policy"]["errors"])
        told = mlxd(running, "explain", key)
        assert told.stdout.startswith(f"{key}: 4\n")
        assert "are refused: limits.yaml:2" in told.stderr

    def test_nonsense_is_a_clear_error(self, running: Daemon, admin: httpx.Client) -> None:
        assert admin.post("/admin/policy/rollback").status_code == 400
        assert admin.post("/admin/policy/rollback?gen=x").status_code == 400
        assert admin.post("/admin/policy/rollback?gen=7777").status_code == 409
        assert admin.post("/admin/policy/plan", content=b"{").status_code == 400
        assert admin.post("/admin/policy/plan", json={"files": ["x"]}).status_code == 400
        assert admin.post("/admin/policy/plan", json={"files": {"x": "y"}}).status_code == 400
        assert admin.get("/admin/policy/explain?key=nope").status_code == 400
        assert admin.get("/admin/policy/reload").status_code == 405


class TestPlan:
    def test_it_says_what_would_happen_and_nothing_does(self, running: Daemon) -> None:
        before = running.generation()
        status, plan = asked(
            running, "plan", "--set", "limits.concurrency.max_in_flight=1",
            "--set", "models.preload=[tiny-a]", "--set", "server.listen.inherit=never",
        )  # fmt: skip
        assert status == 0
        assert {change["key"] for change in plan["changes"]} == {
            "limits.concurrency.max_in_flight", "models.preload", "server.listen.inherit",
        }  # fmt: skip
        said = "\n".join(plan["effects"])
        assert "1 may" in said
        assert "tiny-a" in said
        assert "server.listen.inherit waits for the next start" in said
        assert running.health()["policy"]["generation"] == before

    def test_a_check_online_finds_the_port_taken_by_its_own_daemon(self, running: Daemon) -> None:
        assert mlxd(running, "check", "--online").returncode == 0


def test_a_start_on_broken_files_serves_the_last_good_ones(models: Path, tmp_path: Path) -> None:
    """R3."""
    home = tmp_path / "home"
    home.mkdir()
    with daemon(home, models=models, policies={"limits": SLOTS.format(6)}):
        pass
    with daemon(home, models=models, policies={"limits": SLOTS.format("six")}) as running:
        assert running.http.get("/readyz").status_code == 200
        health = running.health()
        assert (health["max_concurrent"], health["status"]) == (6, "warning")
        assert health["policy"]["source"] == "lkg"
        assert any("the last good one, is in force" in warning for warning in health["warnings"])
        assert 'source="lkg"' in running.http.get("/metrics").text
        edit(running, limits=SLOTS.format(3))
        until(lambda: running.health()["policy"]["source"] == "files", UNASKED_SECONDS)
        assert running.health()["max_concurrent"] == 3
    write_policies(home / "policies", {"limits": SLOTS.format("six")})
    done = subprocess.run(
        [sys.executable, "-m", "mlxd", "serve", "--strict-boot", "--policies",
         str(home / "policies"), "--state", str(home / "state")],
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'got "six"' in done.stderr


def test_a_daemon_without_a_folder_follows_the_one_that_init_makes(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MLXD_", "MLX_API_"))},
        "XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path),
    }  # fmt: skip
    serving = subprocess.Popen(
        [sys.executable, "-m", "mlxd", "serve", "--port", str(port), "--state",
         str(tmp_path / "state")],
        env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:

            def policy() -> Json:
                try:
                    return dict(http.get("/health").json()["policy"])
                except httpx.TransportError:
                    return {}

            until(lambda: policy().get("source") == "defaults", 20.0)
            assert command.mlxd("policy", "init", environment=environment).returncode == 0
            until(lambda: policy()["source"] == "files", 20.0)
            write_policies(tmp_path / "config/mlxd/policies", {"limits": SLOTS.format(2)})
            until(lambda: http.get("/health").json()["max_concurrent"] == 2, 20.0)
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.wait(20)
