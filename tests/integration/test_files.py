"""A daemon that runs out of files: it costs no time, it says how it is, and it comes back."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.conftest import Start
from tests.integration.talking import ENDLESS, drain, eventually, held, say
from tests.support.daemon import Daemon

pytestmark = [
    pytest.mark.mlx,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes: Linux"),
]

ROOM = 12
PATIENT = {"server": "http: {header_timeout: 60s, keep_alive: 60s}\n"}


@contextmanager
def few_files(daemon: Daemon, limit: int = 0) -> Iterator[None]:
    """It may open `ROOM` more than it has open, or only numbers below `limit`."""
    process = psutil.Process(daemon.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    highest = max(int(file.name) for file in Path(f"/proc/{daemon.pid}/fd").iterdir())
    process.rlimit(psutil.RLIMIT_NOFILE, (limit or highest + 1 + ROOM, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


@contextmanager
def crowd(daemon: Daemon, count: int = 100) -> Iterator[list[socket.socket]]:
    """So many clients that connect and say nothing."""
    with ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(10)
            sock.connect(("127.0.0.1", daemon.port))
            socks.append(sock)
        yield socks


def _cpu(daemon: Daemon, seconds: float) -> float:
    """The share of a core that it takes."""
    process = psutil.Process(daemon.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


def _asks(daemon: Daemon, path: str) -> int:
    """The status on a new connection; 0 for none."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{daemon.url}{path}", timeout=5).status_code
    return 0


def _answers(daemon: Daemon, path: str) -> bool:
    return _asks(daemon, path) == 200


def test_out_of_files_it_takes_no_core_and_still_says_how_it_is(start: Start) -> None:
    daemon = start(PATIENT)
    say(daemon, ENDLESS, "x", tokens=1)
    with few_files(daemon), crowd(daemon):
        eventually(lambda: "cannot be accepted" in daemon.log_text(), "it has run out of files")
        assert _cpu(daemon, 3.0) < 0.1
        for path in ("/livez", "/readyz", "/health"):
            eventually(partial(_answers, daemon, path), f"{path} answers", within=15)
        assert daemon.admin.get("/admin/policy")["generation"] >= 1
        assert _asks(daemon, "/api/tags") in (200, 503), "whoever finds no room is told so"
    eventually(lambda: _asks(daemon, "/api/tags") == 200, "it serves again")
    assert say(daemon, ENDLESS, "x", tokens=2)
    assert daemon.process.poll() is None
    assert "Traceback" not in daemon.log_text()


@pytest.mark.slow
def test_a_stream_under_way_does_not_notice(start: Start) -> None:
    daemon = start(PATIENT)
    with held(daemon, tokens=400) as stream, few_files(daemon), crowd(daemon):
        records = stream.rest()
    assert (records[-1]["done"], records[-1]["eval_count"]) == (True, 400)


def test_who_finds_no_room_is_told_so(start: Start) -> None:
    daemon = start(PATIENT)
    with few_files(daemon), crowd(daemon, 60) as socks:
        eventually(lambda: "cannot be accepted" in daemon.log_text(), "it has run out of files")
        answer = drain(socks[-1])
    assert answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 408"))


@pytest.mark.slow
def test_a_limit_below_what_is_open_is_survived(start: Start) -> None:
    """Not even what is kept can be used then."""
    daemon = start(PATIENT)
    with few_files(daemon, limit=3):
        waiting = socket.create_connection(("127.0.0.1", daemon.port))
        waiting.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert _cpu(daemon, 3.0) < 0.1
    waiting.settimeout(10)
    with waiting:
        assert drain(waiting).startswith(b"HTTP/1.1 200")
    assert daemon.process.poll() is None


@pytest.mark.slow
def test_no_file_is_lost_by_it(start: Start) -> None:
    daemon = start(PATIENT)
    _asks(daemon, "/livez")
    before = psutil.Process(daemon.pid).num_fds()
    for _ in range(3):
        with few_files(daemon), crowd(daemon, 60):
            time.sleep(0.5)
    eventually(lambda: _asks(daemon, "/livez") == 200, "it answers")

    def back() -> bool:
        return psutil.Process(daemon.pid).num_fds() <= before + 1

    eventually(back, "as many files as before")
