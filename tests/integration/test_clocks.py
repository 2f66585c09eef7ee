"""Clocks that jump, a machine that sleeps, a daemon that is stopped: nothing is blamed for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import Start
from tests.integration.talking import (
    ENDLESS,
    eventually,
    generate,
    held,
    idle,
    one_answer,
    say,
    spawned,
    workers_of,
)
from tests.support import clocks
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

STOPPED = 4.0
HOUR = 3600.0
HASTY = "generation: 3500ms\nfirst_token: 2s\ninter_token_stall: 1s\nworker_cancel_ack: 500ms\n"
WATCHFUL = "worker: {health: {interval: 500ms, timeout: 500ms, failures_down: 2}}\n"
PATIENT = "generation: 60s\nfirst_token: 30s\ninter_token_stall: 30s\nworker_cancel_ack: 10s\n"
CALM = "worker: {health: {interval: 500ms, timeout: 500ms, failures_down: 40}}\n"
"""Far more than a busy machine takes, and far less than an hour."""
ON_MAC = Path(__file__).parent.parent / "support" / "on_mac.py"


def wakes(daemon: Daemon) -> list[dict[str, Any]]:
    told = daemon.admin.get("/admin/events")["events"]
    return [event["data"] for event in told if event["type"] == "wake"]


@pytest.mark.slow
def test_a_daemon_that_was_stopped_blames_no_worker(start: Start) -> None:
    """Everything that was due has passed by its clocks, before it has read what came meanwhile."""
    daemon = start({"timeouts": HASTY, "supervision": WATCHFUL})
    expected = say(daemon, ENDLESS, "stopped", tokens=300)
    workers = workers_of(daemon)
    with held(daemon, prompt="stopped", tokens=300) as stream:
        os.kill(daemon.pid, signal.SIGSTOP)
        time.sleep(STOPPED)  # the length of the stop
        os.kill(daemon.pid, signal.SIGCONT)
        last = stream.rest()[-1]
        assert last.get("done"), last
        assert stream.text == expected
    (wake,) = eventually(lambda: wakes(daemon), "it says that it was away")
    assert wake["slept_seconds"] > 3
    assert say(daemon, ENDLESS, "stopped", tokens=300) == expected
    assert workers_of(daemon) == workers
    assert spawned(daemon, ENDLESS) == 1


def test_a_body_that_comes_while_the_daemon_is_stopped_is_not_late(start: Start) -> None:
    daemon = start({"server": "http: {body_idle_timeout: 2s, body_total_timeout: 2s}\n"})
    body = b'{"model": "tiny-a"}'
    head = f"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), 30) as sock:
        sock.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        os.kill(daemon.pid, signal.SIGSTOP)
        time.sleep(STOPPED)  # the length of the stop
        sock.sendall(body)
        os.kill(daemon.pid, signal.SIGCONT)
        assert one_answer(sock).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(bool(clocks.missing()), reason=clocks.missing())
def test_neither_a_wall_clock_that_jumps_nor_a_sleep_is_a_fault(
    start: Start, tmp_path: Path
) -> None:
    hands = clocks.Clocks(tmp_path)
    limits = "concurrency: {max_in_flight: 64}\nrate_limit: [{requests: 6, window: 1h}]\n"
    daemon = start(
        {"limits": limits, "timeouts": PATIENT, "supervision": CALM},
        environment=hands.environment,
    )
    expected = say(daemon, ENDLESS, "jump", tokens=150)
    say(daemon, "tiny-a", "idle", tokens=2)
    workers, began = workers_of(daemon), daemon.health()["timestamp"]
    for wall, slept in ((HOUR, 0.0), (-24 * HOUR, 0.0), (0.0, HOUR)):
        with held(daemon, prompt="jump", tokens=150) as stream:
            hands.set(wall=wall, slept=slept)
            assert stream.rest()[-1].get("done"), stream.records[-1]
            assert stream.text == expected
        if wall:
            assert daemon.health()["timestamp"][:13] != began[:13], "it has not jumped"
    (wake,) = eventually(lambda: wakes(daemon), "it has seen the sleep")
    assert wake["slept_seconds"] == pytest.approx(HOUR, abs=2)
    say(daemon, ENDLESS, "the sixth", tokens=2)
    for wall in (HOUR + 100, -24 * HOUR):
        hands.set(wall=wall, slept=HOUR)
        body = generate(ENDLESS, "one too many", tokens=2)
        refused = daemon.http.post("/api/generate", json=body)
        assert refused.status_code == 429
        left = int(refused.headers["ratelimit"].partition(", ")[0].rpartition("t=")[2])
        assert 3400 < left <= 3600, "the window has moved"
    assert workers_of(daemon) == workers, "neither stalled nor unloaded"
    assert len(wakes(daemon)) == 1


@pytest.mark.slow
def test_a_mac_is_kept_awake_while_work_runs(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "caffeinate"
    program.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    program.chmod(0o755)
    daemon = start(prefix=(sys.executable, str(ON_MAC), str(program)))

    def awake() -> dict[int, list[str]]:
        """What keeps the machine awake: its arguments by its pid."""
        found: dict[int, list[str]] = {}
        for child in psutil.Process(daemon.pid).children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                # A child that has not yet become another program has the daemon's own arguments.
                found |= {child.pid: words[2:]} if words[1:2] == [str(program)] else {}
        return found

    def arguments() -> list[list[str]]:
        return list(awake().values())

    say(daemon, ENDLESS, "warm", tokens=2)
    eventually(lambda: not arguments(), "it ends after the last request")
    with held(daemon) as stream:
        eventually(arguments, "it runs while a stream does")
        assert arguments() == [["-i", "-w", str(daemon.pid)]]
        stream.read(5)
        daemon.edit("supervision", "sleep_wake: {prevent_idle_sleep: never}\n")
        daemon.reload()
        eventually(lambda: not arguments(), "it ends when policy says so")
    idle(daemon)
    daemon.edit("supervision", "sleep_wake: {prevent_idle_sleep: always}\n")
    daemon.reload()
    eventually(arguments, "it runs without work when policy says so")
    (pid,) = awake()
    assert daemon.stop() == 0
    eventually(lambda: not psutil.pid_exists(pid), "it ends with the daemon")
