"""Clients that vanish, stall, trickle and lose packets: what they held is free again, soon."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.integration.conftest import NO_LIMITS, Start
from tests.integration.talking import (
    ENDLESS,
    PATHS,
    body_for,
    eventually,
    generate,
    idle,
    say,
    spawned,
    unload,
)
from tests.support import storm
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

MUCH = 8192
SHORT = "client_write: 1s\n"
LONG = "client_write: 60s\n"
HTTP = "http: {body_idle_timeout: 1s, body_total_timeout: 3s, header_timeout: 1s}\n"
RESET = struct.pack("ii", 1, 0)
SOON = 4.0
"""Seconds; the daemon hears of a closed connection at once, and the worker is between two steps."""


@pytest.fixture(scope="module")
def hardy(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that gives a client little time to take its answer."""
    folder = tmp_path_factory.mktemp("hardy")
    policies = {"limits": NO_LIMITS, "timeouts": SHORT, "server": HTTP}
    with daemon(folder, models=zoo, policies=policies) as running:
        say(running, ENDLESS, "warm", tokens=1)
        yield running


def ask_on(sock: socket.socket, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    sock.sendall(head.encode() + content)


def calm(daemon: Daemon) -> None:
    log = daemon.log_text()
    assert "Traceback" not in log
    assert '"level": "error"' not in log


def running(daemon: Daemon, count: int = 1) -> None:
    eventually(lambda: daemon.health()["active_requests"] == count, "it runs")


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("path", PATHS)
def test_a_stream_whose_client_leaves_is_over(hardy: Daemon, path: str, reset: bool) -> None:
    body = body_for(path, ENDLESS, "leave", tokens=MUCH) | {"stream": True}
    with socket.create_connection(("127.0.0.1", hardy.port)) as sock:
        ask_on(sock, path, body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        running(hardy)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    idle(hardy, within=SOON)
    calm(hardy)


@pytest.mark.slow
def test_fifty_clients_that_read_nothing_hold_little_and_lose_their_streams(hardy: Daemon) -> None:
    expected = say(hardy, ENDLESS, "reads", tokens=60)
    process = psutil.Process(hardy.pid)
    before = most = process.memory_info().rss
    hardy.edit("timeouts", LONG)
    hardy.reload()
    with ExitStack() as stack:
        for number in range(50):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.connect(("127.0.0.1", hardy.port))
            ask_on(sock, "/api/generate", generate(ENDLESS, f"slow {number}", tokens=MUCH))
        running(hardy, 50)
        hardy.edit("timeouts", SHORT)
        hardy.reload()
        body = generate(ENDLESS, "reads", tokens=60)
        answer = hardy.http.post("/api/generate", json=body).text
        texts = [json.loads(line)["response"] for line in answer.splitlines()]
        assert "".join(texts) == expected
        deadline = time.monotonic() + 60
        while hardy.health()["active_requests"]:
            most = max(most, process.memory_info().rss)
            assert time.monotonic() < deadline, "it waits for them"
    assert most - before < 50 * 512 * 1024
    calm(hardy)


def through(port: int, number: int) -> str:
    """One stream through the proxy; how it ended."""
    body = generate(ENDLESS, f"storm {number}", tokens=MUCH)
    url = f"http://127.0.0.1:{port}/api/generate"
    try:
        with httpx.stream("POST", url, json=body, timeout=8) as response:
            for count, _line in enumerate(response.iter_lines()):
                if count > 300:
                    return "enough"
            return "ended"
    except httpx.HTTPError as error:
        return type(error).__name__


def test_after_a_storm_nothing_is_left_of_it(hardy: Daemon) -> None:
    idle(hardy)
    expected = say(hardy, ENDLESS, "calm", tokens=100)
    process = psutil.Process(hardy.pid)
    files = process.num_fds()
    proxy = storm.Proxy(hardy.port)
    try:
        clients = [
            threading.Thread(target=through, args=(proxy.port, number)) for number in range(21)
        ]
        for client in clients:
            client.start()
        running_now = eventually(lambda: hardy.health()["active_requests"], "the storm begins")
        assert running_now
        assert say(hardy, ENDLESS, "calm", tokens=100) == expected
        idle(hardy, within=60)  # though the proxy still holds what is deaf
    finally:
        proxy.close()
    for client in clients:
        client.join(30)
    eventually(lambda: process.num_fds() <= files, "no descriptor is left", within=60)
    assert say(hardy, ENDLESS, "calm", tokens=100) == expected
    assert spawned(hardy, ENDLESS) == 1
    unload(hardy, ENDLESS)  # no lease is left either
    calm(hardy)


@pytest.mark.skipif(bool(storm.no_wire()), reason=storm.no_wire())
@pytest.mark.slow
def test_a_wire_that_loses_packets_or_is_cut_leaves_nothing_behind(start: Start) -> None:
    listen = "listen: {host: 0.0.0.0}\n"
    clients = "auth: {required: false}\n"
    daemon = start({"timeouts": SHORT, "server": listen, "clients": clients})
    expected = say(daemon, ENDLESS, "wire", tokens=60)
    files = psutil.Process(daemon.pid).num_fds()
    with storm.wire() as wire, ExitStack() as stack:

        def client(body: dict[str, Any], path: str = "/api/generate") -> socket.socket:
            sock = stack.enter_context(wire.socket())
            sock.settimeout(30)
            sock.connect((wire.here, daemon.port))
            ask_on(sock, path, body)
            return sock

        wire.rate = 32_000
        assert _all_of(client(generate(ENDLESS, "wire", tokens=60))) == expected
        streams = [client(generate(ENDLESS, str(n), tokens=MUCH)) for n in range(4)]
        wholes = [
            client(body_for("/api/chat", ENDLESS, str(n), tokens=MUCH), "/api/chat")
            for n in range(2)
        ]
        running(daemon, len(streams) + len(wholes))
        wire.loss = 0.3
        time.sleep(1.0)  # of bad weather
        wire.cut = True
        idle(daemon, within=60)
    eventually(lambda: psutil.Process(daemon.pid).num_fds() <= files, "no descriptor is left")
    assert say(daemon, ENDLESS, "wire", tokens=60) == expected
    calm(daemon)


def _all_of(sock: socket.socket) -> str:
    """The text of one stream of /api/generate."""
    text, file = "", sock.makefile("rb")
    for line in file:
        if line.startswith(b"{"):
            record = json.loads(line)
            text += record["response"]
            if record["done"]:
                return text
    raise AssertionError("it has no end")
