"""The units under the real systemd: what is rendered runs, in its sandbox, as it says."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest

from mlxd.policy.load import load
from mlxd.service import systemd
from mlxd.service.facts import facts
from mlxd.service.layout import SYSTEM_LINUX, Layout
from tests.support.daemon import free_port
from tests.support.systemd_machine import (
    UNIT_LOG,
    Machine,
    Unavailable,
    eventually,
    machine,
)

pytestmark = pytest.mark.system

UNIT = systemd.SERVICE
TEST = f"{UNIT}.d/test.conf"
POLICIES = "etc/mlxd/policies"
STATE = "var/lib/private/mlxd"
PROBE = Path(__file__).with_name("probe.py")
CLIENTS = 8
QUICK = "[Service]\nRestartSec=0\n"
WATCHED = f"{QUICK}WatchdogSec=3\n"
ALWAYS = (
    f"[Service]\nStandardOutput=append:/{UNIT_LOG}\nStandardError=inherit\n"
    "LoadCredential=api-keys:/etc/mlxd/api-keys\n"
)
DENIED = ("setuid", "set_user_id", "namespace", "personality", "priority", "writable_code",
          "to_others")  # fmt: skip
UID = 12345
ACCOUNT = f"mlxd-user:x:{UID}:{UID}::/home/mlxd-user:/bin/sh"
GROUP = f"mlxd-user:x:{UID}:"
AS_USER = (
    *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
    *("env", f"XDG_RUNTIME_DIR=/run/user/{UID}"),
)
MANAGER = f"""\
[Service]
Type=notify
User=mlxd-user
Environment=HOME=/home/mlxd-user XDG_RUNTIME_DIR=/run/user/{UID}
RuntimeDirectory=user/{UID}
RuntimeDirectoryMode=0700
Delegate=yes
ExecStart=/lib/systemd/systemd --user
StandardOutput=append:/{UNIT_LOG}
StandardError=inherit
"""
ENDED = "[Service]\nType=exec\nRestartSec=0\nExecStart=\nExecStart=/bin/sh -c 'exit {}'\n"
HIDDEN = ("/home", "/root", "/home/somebody/notes", "/etc/shadow", "/etc/mlxd/api-keys")
SHOWN = ("/proc/meminfo", "/proc/pressure", f"/{POLICIES}/server.yaml", "/srv/mlxd/models")
FIXED = ("/", "/etc", f"/{POLICIES}", "/usr", "/var", "/srv/mlxd/models", "/sys/fs/cgroup")
OWN = ("/var/lib/mlxd", "/var/log/mlxd", "/run/mlxd", "/tmp")


@dataclass(slots=True)
class Service:
    """The rendered units on a machine, for a port that is free."""

    machine: Machine
    port: int
    unit: str
    drop_in: str | None = None
    """In force while it runs."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, drop_in: str = "") -> None:
        """Returns once it is ready. One that runs already goes on, if it is the same."""
        if self.drop_in != drop_in or self.property("ActiveState") != "active":
            self.stop()
            self.machine.install({TEST: drop_in})
            self.machine.systemctl("start", UNIT)
            self.drop_in = drop_in

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", systemd.SOCKET, UNIT)
        self.machine.systemctl("reset-failed")
        self.drop_in = None

    def limits(self, text: str) -> None:
        self.machine.write(f"{POLICIES}/limits.yaml", f"schema: mlxd/v1\n{text}")

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=60).json()
        return body

    def generation(self) -> int:
        return int(httpx.get(f"{self.url}/livez", timeout=60).headers["x-mlxd-policy"])

    def live(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez", timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def said(self) -> str:
        """By the guide model."""
        asked = {"model": "mlxd-guide", "prompt": "What is mlxd?", "stream": False,
                 "options": {"num_predict": 3}}  # fmt: skip
        answer = httpx.post(f"{self.url}/api/generate", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["response"])

    def pid(self) -> int:
        return self.machine.host_pid(UNIT)

    def property(self, name: str) -> str:
        return self.machine.show(UNIT, name)[name]

    def log(self) -> str:
        return (self.machine.root / UNIT_LOG).read_text()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    try:
        with machine(tmp_path_factory.mktemp("machine")) as running:
            yield running
    except Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def installed(booted: Machine) -> Service:
    """Policies, the units of the machine as they are rendered from these, and no journal."""
    port = free_port()
    booted.write(f"{POLICIES}/server.yaml", f"schema: mlxd/v1\nlisten: {{port: {port}}}\n")
    booted.write("etc/mlxd/api-keys", "a secret\n", mode=0o600)
    booted.write("home/somebody/notes", "theirs\n")
    booted.write("dev/disk", "")
    rendered = systemd.system(replace(facts(load(None)), address=f"127.0.0.1:{port}"), SYSTEM_LINUX)
    booted.install({
        UNIT: rendered[UNIT],
        systemd.SOCKET: rendered[systemd.SOCKET],
        f"{UNIT}.d/always.conf": ALWAYS,
    })  # fmt: skip
    return Service(booted, port, rendered[UNIT])


@pytest.fixture
def service(installed: Service) -> Service:
    installed.limits("")
    return installed


def test_it_is_ready_when_the_start_returns(service: Service) -> None:
    service.start()
    assert service.live()
    assert service.property("ActiveState") == "active"


def test_a_reload_returns_with_the_outcome_and_fails_if_it_is_a_refusal(service: Service) -> None:
    service.start()
    before = service.generation()
    for edits in (1, 2):
        service.limits(f"concurrency: {{max_in_flight: {edits}}}\n")
        service.machine.systemctl("reload", UNIT)
        assert service.generation() == before + edits
    service.limits("concurrency: {max_in_flight: many}\n")
    refused = service.machine.run("systemctl", "reload", UNIT)
    assert refused.returncode != 0
    assert service.generation() == before + 2
    assert service.property("ActiveState") == "active"


def test_a_credential_is_for_the_unit_alone(service: Service) -> None:
    service.start()
    path = f"/run/credentials/{UNIT}/api-keys"
    assert service.machine.run("cat", path).stdout == "a secret\n"
    other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    assert service.machine.run(*other, "cat", path).returncode != 0


def test_a_killed_daemon_serves_again_within_six_seconds(service: Service) -> None:
    """The manager means to leave a second of them to the start; here it may be busy itself."""
    service.start()
    first, restarts = service.pid(), int(service.property("NRestarts"))
    killed = time.monotonic()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: service.pid() not in (0, first), "another runs")
    began = int(service.property("ExecMainStartTimestampMonotonic")) / 1e6
    assert began - killed < 6.0
    eventually(service.live, "it serves again")
    assert int(service.property("NRestarts")) == restarts + 1


def test_it_serves_tokens_in_its_sandbox_and_a_killed_worker_leaves_the_unit_as_it_is(
    service: Service,
) -> None:
    service.start()
    assert service.said()
    before = service.machine.show(UNIT, "ActiveState", "MainPID", "NRestarts")
    daemon = service.pid()
    worker = next(pid for pid in service.machine.processes(UNIT) if pid != daemon)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: worker not in service.machine.processes(UNIT), "it is gone")
    assert service.said()
    assert service.machine.show(UNIT, "ActiveState", "MainPID", "NRestarts") == before
    assert service.property("OOMPolicy") == "continue"


def test_a_stop_leaves_nothing(service: Service) -> None:
    service.start()
    assert service.said()
    assert len(service.machine.processes(UNIT)) > 1
    service.machine.systemctl("stop", UNIT)
    assert service.property("Result") == "success"
    assert service.machine.processes(UNIT) == []


def test_the_sandbox_from_inside(service: Service) -> None:
    """Of a process that runs in the daemon's place."""
    service.machine.write("usr/lib/mlxd-probe.py", PROBE.read_text())
    asked = f"/var/lib/mlxd/probe.json {':'.join((*HIDDEN, *SHOWN))} {':'.join((*FIXED, *OWN))}"
    program = f"{service.machine.interpreter} /usr/lib/mlxd-probe.py {asked}"
    service.start(f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart={program}\n")
    found = json.loads((service.machine.root / STATE / "probe.json").read_text())
    assert {name for name, said in found["read"].items() if said == "done"} == {*SHOWN}
    assert {name for name, said in found["write"].items() if said == "done"} == {*OWN}
    assert found["uid"] not in (0, 65534)
    assert found["privileges"] == {"CapEff": 0, "CapPrm": 0, "CapBnd": 0, "CapAmb": 0}
    assert (found["no_new_privileges"], found["umask"]) == ("1", "0077")
    for name in DENIED:
        assert found[name] == "EPERM", name
    for name in ("netlink", "packet"):
        assert found[name] == "EAFNOSUPPORT", name
    assert found["to_itself"] == "done"
    assert found["others"] == []
    assert "disk" not in found["devices"]
    assert found["credential"] == "a secret\n"


def test_the_manager_gives_up_beyond_the_daemons_own_limit(service: Service) -> None:
    """And at once on what only an edit can mend."""
    service.stop()
    most = re.search(r"^StartLimitBurst=(\d+)$", service.unit, re.MULTILINE)
    assert most is not None
    assert int(most[1]) > facts(load(None)).max_restarts
    for status, restarts in (1, most[1]), (2, "0"):
        service.machine.install({TEST: ENDED.format(status)})
        service.machine.run("systemctl", "start", UNIT)
        eventually(lambda: service.property("ActiveState") == "failed", "it has given up")
        assert service.property("NRestarts") == restarts
        service.stop()


@pytest.mark.slow
def test_one_that_hangs_is_killed_by_the_watchdog_and_started_again(service: Service) -> None:
    service.start(WATCHED)
    first = service.pid()
    os.kill(first, signal.SIGSTOP)
    eventually(lambda: service.pid() not in (0, first), "another runs")
    eventually(service.live, "it serves again")
    assert service.property("NRestarts") == "1"


@pytest.mark.skipif(
    find_spec("mlxd.server.inherited") is None, reason="no listener is taken over from systemd yet"
)
@pytest.mark.slow
def test_no_connection_is_refused_over_a_restart_with_the_socket(service: Service) -> None:
    service.stop()
    service.machine.install({TEST: ""})
    service.machine.systemctl("start", systemd.SOCKET, UNIT)
    first, over = service.pid(), threading.Event()
    with ThreadPoolExecutor(CLIENTS) as clients:
        asking = [clients.submit(answers, service.url, over) for _ in range(CLIENTS)]
        service.machine.systemctl("restart", UNIT)
        assert service.pid() != first
        over.set()
        counts = [client.result() for client in asking]
    assert min(counts) > 0
    service.machine.systemctl("stop", systemd.SOCKET)
    assert service.live(), "which is how a drain begins"
    service.machine.systemctl("stop", UNIT)
    assert not service.live()
    assert service.property("ActiveState") == "inactive", "nobody starts it again"
    service.stop()


def answers(url: str, over: threading.Event) -> int:
    """How often it has answered, each time on a connection of its own, before and after.

    A connection that is refused or broken is an error.
    """
    count = 0
    while not over.is_set() or count == 0:
        httpx.get(f"{url}/livez", timeout=60, headers={"Connection": "close"})
        count += 1
        over.wait(0.01)
    httpx.get(f"{url}/livez", timeout=60).raise_for_status()
    return count


def test_a_users_manager_runs_the_users_unit(booted: Machine) -> None:
    """With what of the sandbox needs no privilege."""
    for file, line in ("etc/passwd", ACCOUNT), ("etc/group", GROUP):
        booted.write(file, f"{(booted.root / file).read_text()}{line}\n")
    booted.run("install", "-d", "-o", str(UID), "-m", "0700", "/home/mlxd-user")
    port = free_port()
    layout = Layout(PurePosixPath("/usr/bin/mlxd"), None, None, PurePosixPath("/nowhere"))
    unit = systemd.user(facts(load(None)), layout)[UNIT]
    unit = unit.replace("[Service]\n", f"[Service]\nEnvironment=MLXD_PORT={port}\n")
    booted.write(f"home/mlxd-user/.config/systemd/user/{UNIT}", unit)
    booted.install({"manager.service": MANAGER})
    booted.systemctl("start", "manager.service")
    try:
        started = booted.run(*AS_USER, "systemctl", "--user", "start", UNIT)
        assert started.returncode == 0, started.stderr + booted.told()
        assert httpx.get(f"http://127.0.0.1:{port}/livez", timeout=60).status_code == 200
        main = booted.run(*AS_USER, "systemctl", "--user", "show", "-PMainPID", UNIT).stdout.strip()
        status = booted.run("cat", f"/proc/{main}/status").stdout
        assert "\nNoNewPrivs:\t1\n" in status
        assert "\nSeccomp:\t2\n" in status
    finally:
        booted.systemctl("stop", "manager.service")
