"""Clients that hold connections and ask nothing whole (F15): each is closed at its timer, and where
they are as many as there may be, they give way to those who ask something.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mlxd.server.giving_way import PATIENCE_SECONDS
from tests.integration.conftest import NO_LIMITS
from tests.integration.talking import eventually, exchange, held, raw
from tests.support.daemon import Daemon, daemon
from tests.support.peak import KNOWN, forget, most
from tests.support.refusals import PATHS, words_of
from tests.support.smuggling import answers_in

ROOM = 24
CROWD = "http: {max_connections: 24, header_timeout: 30s, body_idle_timeout: 30s}\n"
MANY = "http: {max_connections: 2000, header_timeout: 2s, body_idle_timeout: 2s}\n"
SILENT_SECONDS = 1.0
"""A connection has then been silent for long enough to give way, even where it was let in late."""
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
KEPT = LIVE.replace(b"Connection: close\r\n", b"")
HEAD = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with room for few, whose timers are long."""
    with daemon(tmp_path_factory.mktemp("crowded"), policies={"server": CROWD}) as running:
        running.http.close()
        yield running


@pytest.fixture(autouse=True)
def nobody_is_there(crowded: Daemon) -> None:
    """Nobody of the test before."""
    nobody_is_left(crowded)


def nobody_is_left(crowded: Daemon) -> None:
    process = psutil.Process(crowded.pid)
    eventually(
        lambda: all(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")),
        "no connections",
    )


@contextmanager
def holding(port: int, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    """So many connections with the beginning of a request on each."""
    with ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            sock.sendall(sent)
            socks.append(sock)
        yield socks


def body_of(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    return head.encode() + b'{"model": '


def all_in_use(crowded: Daemon) -> None:
    """Beyond that, only for as long as somebody has been heard a moment ago."""
    time.sleep(SILENT_SECONDS)


class Sending:
    """A letter now and then on a connection: what was heard a moment ago stays that."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._over = threading.Event()
        self.longest = 0.0
        """Seconds between two of them: this machine may give nobody a turn for a while."""

    def _send(self) -> None:
        last = time.monotonic()
        over = False
        while not over:
            over = self._over.wait(0.02)
            with suppress(ConnectionError):  # what ended it is asked afterwards
                self._sock.sendall(b"x")
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now

    @contextmanager
    def throughout(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(self._send)
            time.sleep(0.05)
            try:
                yield
            finally:
                self._over.set()
            sent.result()


def served(daemon: Daemon) -> None:
    answer = raw(daemon, LIVE)
    assert answer.startswith(b"HTTP/1.1 200"), answer


def answered(socks: list[socket.socket]) -> None:
    for sock in socks:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def ended(sock: socket.socket) -> bytes | None:
    """What was said before its end; None: it goes on."""
    sock.settimeout(0.02)
    received = b""
    try:
        while piece := sock.recv(65536):
            received += piece
    except TimeoutError:
        return None
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize(
    "sent", [b"", HEAD, body_of(PATHS[0]), pytest.param(b"POST /api", marks=pytest.mark.slow)]
)
def test_slow_ones_give_way_to_whoever_asks(crowded: Daemon, sent: bytes) -> None:
    with holding(crowded.port, sent, ROOM) as socks:
        all_in_use(crowded)
        for _ in range(5):
            served(crowded)
        found = [ended(sock) for sock in socks]
    gone = [said for said in found if said is not None]
    assert 1 <= len(gone) <= 5
    assert found[: len(gone)] == gone, "those that came first"
    for said in gone:
        [answer] = answers_in(said)
        assert answer.status == 408
        assert b"server.http.max_connections" in answer.body
        assert b"x-mlxd-policy-key: server.http.max_connections" in answer.head.lower()


def test_slow_bodies_that_give_way_are_told_so_in_their_apis(crowded: Daemon) -> None:
    paths = PATHS * (ROOM // len(PATHS))
    with ExitStack() as stack:
        socks = [stack.enter_context(holding(crowded.port, body_of(path), 1))[0] for path in paths]
        all_in_use(crowded)
        answered(stack.enter_context(holding(crowded.port, KEPT, 2 * len(PATHS))))
        found = [(path, ended(sock)) for path, sock in zip(paths, socks, strict=True)]
    told = {path: said for path, said in found if said is not None}
    assert told.keys() == set(PATHS)
    for path, said in told.items():
        [answer] = answers_in(said)
        assert "others wait to connect" in words_of(path, answer)
        assert b"x-mlxd-policy-key: server.http.max_connections" in answer.head.lower()


def test_slow_ones_go_before_idle_ones_and_idle_ones_without_a_word(crowded: Daemon) -> None:
    with (
        holding(crowded.port, KEPT, ROOM - 2) as idle,
        holding(crowded.port, HEAD, 2) as slow,
    ):
        answered(idle)
        all_in_use(crowded)
        with holding(crowded.port, KEPT, 2) as more:
            answered(more)
            assert [ended(sock) is not None for sock in slow] == [True, True]
            assert all(ended(sock) is None for sock in idle)
            all_in_use(crowded)
            with holding(crowded.port, KEPT, 1) as one:
                answered(one)
                assert [said for sock in idle if (said := ended(sock)) is not None] == [b""]


def test_idle_ones_go_before_a_body_that_keeps_coming(crowded: Daemon) -> None:
    for _ in range(5):
        with (
            holding(crowded.port, KEPT, ROOM - 1) as idle,
            holding(crowded.port, body_of(PATHS[0]), 1) as [upload],
        ):
            answered(idle)
            all_in_use(crowded)
            upload_goes_on = Sending(upload)
            with upload_goes_on.throughout():
                served(crowded)
            said = ended(upload)
            if upload_goes_on.longest < PATIENCE_SECONDS / 2:
                assert said is None
                assert [end for sock in idle if (end := ended(sock)) is not None] == [b""]
                return
        nobody_is_left(crowded)
    pytest.skip("this machine gives nobody a turn often enough")


def test_who_goes_on_sending_stays(crowded: Daemon) -> None:
    with holding(crowded.port, HEAD, ROOM) as socks:
        all_in_use(crowded)
        socks[0].sendall(b"x")
        time.sleep(0.05)
        served(crowded)
        assert ended(socks[0]) is None
        assert ended(socks[1]) is not None


@pytest.mark.mlx
def test_who_waits_for_an_answer_never_gives_way(zoo: Path, tmp_path: Path) -> None:
    policies = {"limits": NO_LIMITS, "server": CROWD.replace("24", "3")}
    with (
        daemon(tmp_path, models=zoo, policies=policies) as running,
        held(running) as first,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(type(running.http)(base_url=running.url)) for _ in range(2)]
        streams = [first]
        streams += [stack.enter_context(held(running, client=client)) for client in clients]
        time.sleep(SILENT_SECONDS)
        answer = raw(running, LIVE)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"server.http.max_connections" in answer
        for stream in streams:
            stream.read(5)
            stream.hang_up()
        eventually(lambda: raw(running, LIVE).startswith(b"HTTP/1.1 200"), "there is room again")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(HEAD, id="header"),
        pytest.param(body_of("/v1/messages"), id="body", marks=pytest.mark.slow),
    ],
)
def test_many_slow_ones_end_at_their_timer_within_bounded_memory(
    tmp_path: Path, sent: bytes
) -> None:
    count = 500
    with daemon(tmp_path, policies={"server": MANY}) as running:
        served(running)
        before = forget(running.pid) if KNOWN else 0
        began = time.monotonic()
        with holding(running.port, sent, count) as socks:
            served(running)
            answers = [answers_in(_to_the_end(sock))[0] for sock in socks]
            took = time.monotonic() - began
            served(running)
        assert [answer.status for answer in answers] == [408] * count
        for answer in answers:
            assert b"x-mlxd-code: request_timeout" in answer.head.lower()
            assert b"x-mlxd-policy-key: server.http." in answer.head.lower()
        assert 2 <= took < 12
        if KNOWN:
            assert most(running.pid) - before < count * 64 * 1024
        eventually(lambda: exchange(running, KEPT), "it goes on")


def _to_the_end(sock: socket.socket) -> bytes:
    received = b""
    while piece := sock.recv(65536):
        received += piece
    return received
