"""A daemon that hangs, or has lost a part, ends itself; one that was only stopped goes on."""

from __future__ import annotations

import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli import exits
from tests.integration.conftest import Start
from tests.integration.talking import ENDLESS, eventually, gone, held, say
from tests.support import sabotage
from tests.support.daemon import Daemon, free_port

pytestmark = pytest.mark.mlx

WATCHED = {"supervision": "daemon: {watchdog: 1500ms}\n"}


def _with(start: Start, defect: str, policies: dict[str, str] | None = None) -> Daemon:
    prefix = [sys.executable, sabotage.__file__, defect]
    return start({**WATCHED, **(policies or {})}, prefix=prefix)


def _trigger(daemon: Daemon, within: float) -> tuple[int, float]:
    """Its exit status, and the seconds until it was gone."""
    began = time.monotonic()
    daemon.process.send_signal(signal.SIGUSR1)
    return daemon.process.wait(within), time.monotonic() - began


def test_a_loop_that_stands_still_ends_the_daemon_with_its_stacks_and_workers(
    start: Start,
) -> None:
    daemon = _with(start, "block:60")
    say(daemon, ENDLESS, "x", tokens=1)
    (worker,) = daemon.workers()
    status, seconds = _trigger(daemon, within=30)
    assert status == exits.BROKEN
    assert 1.0 < seconds < 15
    for told in (daemon.log_text(), (daemon.state / "stacks.txt").read_text()):
        assert "the event loop has not turned" in told
        assert "sabotage.py" in told, "the stack of what holds it up"
        assert told.count("Thread 0x") >= 2
    eventually(lambda: gone(worker.pid), "its worker is gone", within=5)


@pytest.mark.slow
def test_a_short_delay_of_the_loop_is_measured_and_nothing_else(start: Start) -> None:
    daemon = _with(start, "block:0.6")
    daemon.process.send_signal(signal.SIGUSR1)

    def late() -> bool:
        text = daemon.http.get("/metrics").text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if "loop_lag" in line)
        slow = float(values["mlxd_event_loop_lag_seconds_count"])
        return slow > float(values['mlxd_event_loop_lag_seconds_bucket{le="0.1"}'])

    eventually(late, "the lag is in the metrics")
    assert daemon.process.poll() is None


@pytest.mark.slow
def test_the_shortest_watch_ends_no_daemon_that_works(start: Start) -> None:
    daemon = _with(start, "block:0.3", {"supervision": "daemon: {watchdog: 1s}\n"})
    for _ in range(8):
        say(daemon, ENDLESS, "x", tokens=8)
        daemon.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
    assert daemon.http.get("/livez").status_code == 200


@pytest.mark.slow
def test_a_listener_that_nobody_serves_ends_the_daemon(start: Start) -> None:
    daemon = _with(start, "deaf")
    status, seconds = _trigger(daemon, within=60)
    assert status == exits.BROKEN
    assert seconds > 3 * 1.5, "three misses, not one"
    assert "nobody answered /livez" in daemon.log_text()


@pytest.mark.slow
def test_one_that_answers_nobody_is_ended_however_many_come(start: Start) -> None:
    daemon = _with(start, "mute")
    daemon.process.send_signal(signal.SIGUSR1)
    until = time.monotonic() + 30
    while daemon.process.poll() is None and time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", daemon.port), 5):
            time.sleep(0.05)
    assert daemon.process.poll() == exits.BROKEN
    assert "nobody answered /livez" in daemon.log_text()


@pytest.mark.slow
def test_a_daemon_that_was_stopped_and_goes_on_is_not_ended(start: Start) -> None:
    daemon = start(WATCHED)
    for _ in range(2):
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        daemon.process.send_signal(signal.SIGCONT)
        time.sleep(0.3)
    assert daemon.http.get("/livez").status_code == 200
    time.sleep(3.0)
    assert daemon.process.poll() is None


@pytest.mark.slow
def test_the_probe_follows_the_address(start: Start) -> None:
    """The daemon is deaf on no address: else it would end within seconds."""
    first, second = free_port(), free_port()
    policies = {**WATCHED, "server": f"listen: {{port: {first}, linger: 0s}}\n"}
    daemon = start(policies, port=first, port_flag=False)
    before = daemon.generation()
    daemon.edit("server", f"listen: {{host: localhost, port: {second}, linger: 0s}}\n")
    eventually(lambda: daemon.address().port == second, "it has moved")
    daemon.follow()
    assert daemon.generation() > before
    time.sleep(8.0)
    assert daemon.process.poll() is None
    assert daemon.log_text().count("GET /livez 200") > 3


@pytest.mark.slow
def test_a_drain_that_takes_long_is_no_hang(start: Start) -> None:
    daemon = _with(start, "block:4", {"server": "drain: {not_ready_delay: 0s, grace: 40s}\n"})
    with held(daemon, tokens=300) as stream:
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "no new connection" in daemon.log_text(), "it drains")
        daemon.process.send_signal(signal.SIGUSR1)
        stream.rest()
    assert daemon.process.wait(40) == 0


@pytest.mark.parametrize(
    "defect",
    [
        "lose:guard",
        *(
            pytest.param(defect, marks=pytest.mark.slow)
            for defect in ("lose:watcher", "lose:heartbeat", "end:guard")
        ),
    ],
)
def test_a_lost_part_ends_the_daemon(start: Start, defect: str) -> None:
    daemon = _with(start, defect, {"supervision": "daemon: {watchdog: 30s}\n"})
    say(daemon, ENDLESS, "x", tokens=1)
    (worker,) = daemon.workers()
    status, seconds = _trigger(daemon, within=40)
    assert status == exits.BROKEN
    assert seconds < 15
    log = daemon.log_text()
    assert "so does the daemon" in log
    assert ("RuntimeError" in log) == defect.startswith("lose")
    assert gone(worker.pid)


def test_a_daemon_serves_on_without_spares(start: Start) -> None:
    daemon = _with(start, "lose:spares", {"supervision": "worker: {spares: 1}\n"})
    daemon.process.send_signal(signal.SIGUSR1)
    eventually(lambda: "the keeping of spares has ended" in daemon.log_text(), "it is told")
    say(daemon, ENDLESS, "x", tokens=1)
    assert daemon.stop() == 0


def test_systemd_hears_of_it_while_the_loop_turns(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        told: Any = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        prefix = [sys.executable, sabotage.__file__, "block:7"]
        daemon = start(
            {"supervision": "daemon: {watchdog: 30s}\n"}, environment=told, prefix=prefix
        )
        while not sock.recv(100).startswith(b"READY=1"):
            pass
        beats = [time.monotonic() for _ in range(4) if sock.recv(100) == b"WATCHDOG=1"]
        assert len(beats) == 4
        daemon.process.send_signal(signal.SIGUSR1)
        sock.settimeout(3.0)
        last = (sock.recv(100) for _ in range(20))
        with pytest.raises(TimeoutError):
            list(last)
        sock.settimeout(20)
        assert sock.recv(100) == b"WATCHDOG=1"
        daemon.process.send_signal(signal.SIGTERM)
        while not sock.recv(100).startswith(b"STOPPING=1"):
            pass
