"""Another port or host while clients work: who follows the daemon notices nothing (R9)."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from mlxd.core.clock import SystemClock
from mlxd.core.instance import running
from mlxd.policy import keys
from mlxd.policy.load import load
from mlxd.policy.store import PolicyStore
from mlxd.server.connections import GuardedServer
from mlxd.server.listener import Listener
from mlxd.server.port import Bound, bind
from tests.integration.conftest import NO_LIMITS
from tests.integration.talking import (
    ENDLESS,
    Json,
    ask,
    body_for,
    drain,
    eventually,
    generate,
    held,
    say,
    workers_of,
)
from tests.support.daemon import Daemon, daemon, free_port

pytestmark = pytest.mark.mlx

LINGER = 4.0
"""As long as a client that follows may be without the processor between looking and asking."""
CLIENTS = 8
AGAIN_SECONDS = 20.0
"""Within which a port that has become free is taken: the rescan, and much for a busy machine."""
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
PACE_SECONDS = 0.05
"""Between two requests of a client that follows, so that all of them leave some of the machine."""
_FAULT = re.compile(r'"level": "(error|critical)"|Traceback')


def _listen(port: int, host: str = "127.0.0.1", linger: float = LINGER) -> str:
    """server.yaml; the port stands in its third line."""
    return f"listen:\n  port: {port}\n  host: {host}\n  linger: {linger * 1000:.0f}ms\n"


PORT_LINE = 3
HOST_LINE = 4


@pytest.fixture(scope="module")
def one_daemon(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose port is what server.yaml says."""
    port = free_port()
    policies = {
        "server": _listen(port), "clients": "auth: {required: false}\n", "limits": NO_LIMITS,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("movable")
    with daemon(folder, models=zoo, policies=policies, port=port, port_flag=False) as started:
        yield started
        started.http.close()


@pytest.fixture
def movable(one_daemon: Daemon) -> Daemon:
    """It is on a port that no test had before, and nowhere else."""
    assert _move(one_daemon, free_port(), linger=0)["result"] != "refused"
    one_daemon.http.close()
    one_daemon.http = httpx.Client(base_url=one_daemon.url, timeout=60)
    say(one_daemon, "tiny-a", "warm", tokens=1)
    return one_daemon


def _move(moved: Daemon, port: int, host: str = "127.0.0.1", linger: float = LINGER) -> Json:
    """Write it, and have it in force; returns the outcome."""
    moved.edit("server", _listen(port, host, linger))
    outcome = moved.reload()
    if outcome["result"] != "refused":
        _found_at(moved, host, port)
        moved.follow()
    return outcome


def _found_at(moved: Daemon, host: str, port: int) -> None:
    """Until it says so: it writes where it is aside, once it is there."""
    eventually(
        lambda: (moved.address().host, moved.address().port) == (host, port),
        f"it says that it is at {host}:{port}",
    )


# -- clients who follow


@dataclass
class Follower:
    """A client in a loop, that looks before each request where the daemon is."""

    state: Path
    stream: bool
    keep_alive: bool
    stop: threading.Event
    expected: str
    answers: int = 0
    reached: set[tuple[str, int]] = field(default_factory=set)
    _connection: http.client.HTTPConnection | None = None

    def loop(self) -> None:
        while not self.stop.is_set():
            text = self._ask()
            assert text == self.expected, text
            self.answers += 1
            self.stop.wait(PACE_SECONDS)
        self._hang_up()

    def _ask(self) -> str:
        body = generate("tiny-a", "follow", tokens=4) | {"stream": self.stream}
        connection = self._connected()
        headers = {} if self.keep_alive else {"Connection": "close"}
        connection.request("POST", "/api/generate", json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        if response.will_close:
            self._hang_up()
        return "".join(json.loads(line)["response"] for line in content.splitlines())

    def _connected(self) -> http.client.HTTPConnection:
        """The one it has, unless the daemon has moved, or has said that it will close it."""
        address = running(self.state)
        assert address is not None
        host = "127.0.0.1" if address.host == "0.0.0.0" else address.host
        if self._connection is not None and (host, address.port) != (
            self._connection.host, self._connection.port,
        ):  # fmt: skip
            self._hang_up()
        if self._connection is None:
            self._connection = http.client.HTTPConnection(host, address.port, timeout=30)
            self.reached.add((address.host, address.port))
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def followed(moved: Daemon) -> Iterator[list[Follower]]:
    """Eight clients at work; an answer that is missing or wrong fails the test at the end."""
    stop = threading.Event()
    expected = say(moved, "tiny-a", "follow", tokens=4)
    followers = [
        Follower(moved.state, bool(n & 1), bool(n & 2), stop, expected) for n in range(CLIENTS)
    ]
    with ThreadPoolExecutor(CLIENTS) as pool:
        loops: list[Future[None]] = [pool.submit(one.loop) for one in followers]
        try:
            _everyone_answered(followers, 1)
            yield followers
        finally:
            stop.set()
        for loop in loops:
            loop.result()


def _everyone_answered(followers: list[Follower], more: int) -> None:
    """Until each has had so many more answers."""
    wanted = [one.answers + more for one in followers]
    eventually(
        lambda: all(one.answers >= n for one, n in zip(followers, wanted, strict=True)),
        "every client is answered", within=30,
    )  # fmt: skip


def _refuses(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_eight_clients_that_follow_three_changes_of_the_port_lose_nothing(movable: Daemon) -> None:
    ports = [movable.port, *(free_port() for _ in range(3))]
    pids = workers_of(movable)
    with followed(movable) as followers:
        for port in ports[1:]:
            assert _move(movable, port)["result"] != "refused"
            _everyone_answered(followers, 3)
        for port in ports[:-1]:
            eventually(lambda port=port: _refuses(port), f"{port} refuses")  # type: ignore[misc]
        _everyone_answered(followers, 3)
    for one in followers:
        assert one.reached == {("127.0.0.1", port) for port in ports}
    assert workers_of(movable) == pids
    assert not _FAULT.search(movable.log_text())


# -- the address before


@pytest.mark.slow
def test_a_stream_on_the_port_before_ends_as_it_should(movable: Daemon) -> None:
    expected = ask(movable, generate(ENDLESS, "to its end", tokens=900))
    with held(movable, ENDLESS, "to its end", tokens=900) as stream:
        old = movable.port
        _move(movable, free_port(), linger=0.1)
        eventually(lambda: _refuses(old), "the old port refuses")
        assert len(stream.records) < 900, "the stream is over already, and proves nothing"
        last = stream.rest()[-1]
    assert (last["done"], last["eval_count"]) == (True, 900)
    assert stream.text == expected["response"]


def test_the_port_before_accepts_while_it_lingers_and_asks_its_clients_to_go(
    movable: Daemon,
) -> None:
    old = movable.port
    with httpx.Client(base_url=f"http://127.0.0.1:{old}") as known:
        assert "connection" not in known.get("/livez").headers
        _move(movable, free_port(), linger=30)
        for client in (known, httpx.Client(base_url=f"http://127.0.0.1:{old}")):
            answer = client.get("/livez")
            assert answer.status_code == 200
            assert answer.headers["connection"] == "close"
            client.close()
    assert "connection" not in movable.http.get("/livez").headers


def test_when_the_lingering_ends_idle_connections_are_closed_and_new_ones_refused(
    movable: Daemon,
) -> None:
    old = movable.port
    with socket.create_connection(("127.0.0.1", old), timeout=10) as idle:
        idle.sendall(LIVEZ)
        assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        _move(movable, free_port())
        assert not _refuses(old)
        assert drain(idle) == b"", "it was told something"
        eventually(lambda: _refuses(old), "the old port refuses")


def test_a_request_that_is_coming_when_the_lingering_ends_is_answered(movable: Daemon) -> None:
    """One of which nothing has come yet, one whose header has begun, one whose body has."""
    old = movable.port
    body = json.dumps(body_for("/api/generate", "tiny-a", "late", tokens=1)).encode()
    post = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    asked = post % len(body) + body
    with ExitStack() as stack:
        late = [
            stack.enter_context(socket.create_connection(("127.0.0.1", old), timeout=10))
            for _ in range(3)
        ]
        cuts = [0, 20, len(asked) - 10]
        for sock, cut in zip(late, cuts, strict=True):
            sock.sendall(asked[:cut])
        _move(movable, free_port(), linger=0.1)
        eventually(lambda: _refuses(old), "the old port refuses")
        for sock, cut in zip(late, cuts, strict=True):
            sock.sendall(asked[cut:])
            answer = drain(sock)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"connection: close" in answer.lower()


async def test_whoever_is_connected_when_an_address_goes_is_answered_though_not_accepted() -> None:
    """The kernel connects; closing the socket would reset those whom nobody has accepted yet."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok\n")

    policies = load()
    listener = Listener(
        GuardedServer(answer, PolicyStore(policies), SystemClock()), SystemClock(), lambda *_: None
    )
    sock = bind("127.0.0.1", 0)
    listener.open(Bound((sock,)), policies.server.listen)
    with socket.create_connection(sock.getsockname(), timeout=5) as client:
        client.sendall(LIVEZ)
        await listener.stop_accepting()
        assert (await asyncio.to_thread(client.recv, 4096)).startswith(b"HTTP/1.1 200")
    await listener.close()


def test_an_address_lingers_for_thirty_seconds_unless_policy_says_otherwise() -> None:
    key = keys.table()["server", "listen", "linger"]
    assert key.default == "30s"


@pytest.mark.slow
def test_the_way_back_to_a_port_that_still_lingers_keeps_it(movable: Daemon) -> None:
    first, second = movable.port, free_port()
    with followed(movable) as followers:
        _move(movable, second)
        _everyone_answered(followers, 1)
        assert _move(movable, first)["result"] != "refused"
        eventually(lambda: _refuses(second), "the other port refuses")
        assert not _refuses(first), "its first lingering went on"
        _everyone_answered(followers, 2)
    assert "connection" not in movable.http.get("/livez").headers


# -- a port that cannot be had


def test_a_taken_port_changes_nothing_and_comes_into_force_once_it_is_free(
    movable: Daemon,
) -> None:
    old, generation = movable.port, movable.generation()
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = other.getsockname()[1]
        outcome = _move(movable, wanted)
        assert outcome["result"] == "refused"
        [error] = outcome["errors"]
        assert (error["file"], error["line"]) == ("server.yaml", PORT_LINE)
        assert error["key"] == "server.listen.port"
        assert str(wanted) in error["message"]
        health = movable.health()
        assert any(f"server.yaml:{PORT_LINE}" in one for one in health["policy"]["errors"])
        assert movable.address().port == old
        assert movable.generation() == generation
        assert say(movable, "tiny-a", "still here", tokens=1)
    eventually(lambda: movable.address().port == wanted, "the port is taken", AGAIN_SECONDS)
    movable.follow()
    assert movable.health()["policy"]["errors"] == []
    assert movable.generation() == generation + 1
    said = [line for line in movable.log_text().splitlines() if "policies refused" in line]
    told = [line for line in said if str(wanted) in line]
    assert len(told) in (1, 2), "once to the watcher, once to who asked; an old obstacle is no news"


def test_a_host_that_is_not_of_this_machine_is_refused_at_its_line(movable: Daemon) -> None:
    outcome = _move(movable, movable.port, host="203.0.113.7")
    [error] = outcome["errors"]
    assert (error["file"], error["line"]) == ("server.yaml", HOST_LINE)
    assert error["key"] == "server.listen.host"
    assert movable.http.get("/livez").status_code == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_check_changes_no_address(movable: Daemon, host: str) -> None:
    """What it opens it closes, and what was there stays, under whatever name it is checked."""
    port = movable.port if host == "localhost" else free_port()
    movable.edit("server", _listen(port, host, linger=0.0))
    assert movable.admin.post("/admin/policy/check")["valid"] is True
    movable.reload()
    eventually(lambda: movable.address().port == port, f"it says that it is at {port}")
    movable.follow()
    assert not _refuses(port)
    assert "connection" not in movable.http.get("/livez").headers


# -- another host


@pytest.mark.skipif(sys.platform != "linux", reason="needs the whole of 127.0.0.0/8")
@pytest.mark.slow
def test_eight_clients_that_follow_a_change_of_the_host_lose_nothing(movable: Daemon) -> None:
    port = movable.port
    with followed(movable) as followers:
        for host in ("127.0.0.2", "0.0.0.0", "127.0.0.1"):
            _move_host(movable, port, host)
            _everyone_answered(followers, 3)
        eventually(lambda: _refuses(port, "127.0.0.2"), "all other addresses are given up")
        _everyone_answered(followers, 3)
    assert {host for one in followers for host, _ in one.reached} == {
        "127.0.0.1", "127.0.0.2", "0.0.0.0",
    }  # fmt: skip
    assert not _FAULT.search(movable.log_text())


def _move_host(moved: Daemon, port: int, host: str) -> Json:
    moved.edit("server", _listen(port, host))
    outcome = moved.reload()
    _found_at(moved, host, port)
    return outcome


@pytest.mark.skipif(sys.platform != "linux", reason="needs the whole of 127.0.0.0/8")
@pytest.mark.slow
def test_all_addresses_are_served_while_the_one_before_lingers_and_after(movable: Daemon) -> None:
    _move_host(movable, movable.port, "0.0.0.0")
    for host in ("127.0.0.1", "127.0.0.3"):
        assert not _refuses(movable.port, host)
    ended = f"127.0.0.1:{movable.port} accepts no connections"
    eventually(lambda: ended in movable.log_text(), "the lingering ends")
    for host in ("127.0.0.1", "127.0.0.3"):
        assert not _refuses(movable.port, host)
    body = body_for("/api/generate", "tiny-a", "reachable", tokens=1)
    assert movable.http.post("/api/generate", json=body).status_code == 200
