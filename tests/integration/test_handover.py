"""A listener that a service manager keeps: nobody notices that one daemon follows another."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.talking import eventually
from tests.support import activator
from tests.support.daemon import Daemon, daemon, free_port

CLIENTS = 8
RESTARTS = 2
AT_ONCE = 0.08
"""Seconds; one that asks again within a tenth of a second after its answer is answered."""


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """The manager's: one for IPv4 and, where there is that, one for IPv6, on the same port."""
    with ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        found = [four]
        with contextlib.suppress(OSError):
            six = ("::1", four.getsockname()[1])
            found.append(
                stack.enter_context(socket.create_server(six, family=socket.AF_INET6, backlog=512))
            )
        yield found


@contextmanager
def activated(folder: Path, listeners: list[socket.socket], server: str = "") -> Iterator[Daemon]:
    """A daemon that was handed them."""
    folder.mkdir(exist_ok=True)
    files = [sock.fileno() for sock in listeners]
    names = ":".join("http" for _ in files)
    with daemon(
        folder,
        policies={"server": server} if server else {},
        port=listeners[0].getsockname()[1],
        port_flag=False,
        prefix=activator.prefix(files, names),
        pass_fds=files,
    ) as running:
        yield running


@dataclass
class Client:
    """Asks again and again; whatever is no answer of 200 is a failure."""

    address: tuple[str, int]
    keep_alive: bool
    stop: threading.Event
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    _connection: http.client.HTTPConnection | None = None
    _asked: float = float("inf")
    """When the last request on the same connection was made; none was yet."""
    _late: bool = False
    """The system had this client wait for long before it could ask again."""

    def loop(self) -> None:
        while not self.stop.is_set() and not self.failures:
            try:
                self._ask()
            except (OSError, http.client.HTTPException) as error:
                if not self._late:
                    self.failures.append(repr(error))
                self._hang_up()
            time.sleep(0.005)  # the daemon needs a processor, too
        self._hang_up()

    def _ask(self) -> None:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self.address, timeout=60)
        before, self._asked = self._asked, time.monotonic()
        self._late = False
        self._connection.request("GET", "/livez")
        self._late = time.monotonic() - before > AT_ONCE
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            self.failures.append(str(answer.status))
        self.answers += 1
        if answer.will_close or not self.keep_alive:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._asked = None, float("inf")


def test_over_restarts_nobody_is_refused_or_reset_and_everybody_is_answered(
    tmp_path: Path, listeners: list[socket.socket]
) -> None:
    """Half of the clients connect for each request, half stay; half come by IPv6."""
    stop = threading.Event()
    addresses = [sock.getsockname()[:2] for sock in listeners]
    clients = [Client(addresses[n % len(addresses)], bool(n & 2), stop) for n in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        loops = [pool.submit(one.loop) for one in clients]
        try:
            for turn in range(RESTARTS + 1):
                with activated(tmp_path / "daemon", listeners):
                    _everybody_is_answered(clients)
                    if turn == RESTARTS:
                        stop.set()
                        for loop in loops:
                            loop.result(60)
        finally:
            stop.set()
            for sock in listeners:
                sock.close()  # nobody waits for a daemon that does not come
    assert [one.failures for one in clients] == [[]] * CLIENTS


def _everybody_is_answered(clients: list[Client]) -> None:
    """Three times more, or not at all."""
    wanted = [one.answers + 3 for one in clients]
    eventually(
        lambda: all(
            one.failures or one.answers >= n for one, n in zip(clients, wanted, strict=True)
        ),
        "everybody is answered",
        within=60,
    )


@pytest.mark.slow
def test_it_says_where_it_listens_and_an_edit_of_that_is_shadowed(
    tmp_path: Path, listeners: list[socket.socket]
) -> None:
    """So do its state folder, its health and the commands; no worker can have the socket."""
    port = listeners[0].getsockname()[1]
    with activated(tmp_path / "daemon", listeners, "listen: {backlog: 7}\n") as running:
        found = running.address()
        assert (found.host, found.port) == ("127.0.0.1", port)
        assert f"serves on http://127.0.0.1:{port}" in running.log_text()
        for sock in listeners:
            with socket.create_connection(sock.getsockname()[:2], timeout=60) as client:
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
        elsewhere = free_port()
        running.edit("server", f"listen:\n  port: {elsewhere}\n  backlog: 9\n")
        assert running.reload()["result"] != "refused"  # it may have seen the edit by itself
        line = f"server.listen.port: {elsewhere} (server.yaml:3) is shadowed by"
        line += " socket http of systemd"
        health = running.health()
        assert health["policy"]["shadowed"] == [line]
        assert line in health["warnings"]
        assert running.address().port == port
        plan = running.admin.post(
            "/admin/policy/plan", {"files": {}, "set": {"server.listen.host": "0.0.0.0"}}
        )
        assert (plan["valid"], plan["changes"]) == (True, [])
        assert plan["shadowed"] == [
            "server.listen.host: 0.0.0.0 (--set) is shadowed by socket http of systemd"
        ]
        [value] = running.admin.get("/admin/policy/explain", key="server.listen.port")["values"]
        assert (value["value"], value["source"]) == (str(port), "socket http of systemd")


def _serve(
    tmp_path: Path, *flags: str, prefix: list[str], pass_fds: list[int], **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "mlxd", "serve", "--state", str(tmp_path / "s"), *flags],
        check=False, capture_output=True, text=True, timeout=60, pass_fds=pass_fds,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_start_that_is_refused_says_why_to_who_reads_the_log_and_to_systemd(
    tmp_path: Path,
) -> None:
    path = tmp_path / "notify"
    with (
        socket.socket(socket.AF_UNIX) as bad,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(path))
        manager.settimeout(10)
        bad.bind(str(tmp_path / "listen"))
        bad.listen()
        done = _serve(
            tmp_path, prefix=activator.prefix([bad.fileno()], "http"), pass_fds=[bad.fileno()],
            NOTIFY_SOCKET=str(path),
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "is a unix-domain socket" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        words = done.stderr.strip().removeprefix("mlxd: ")
        assert manager.recv(4096).decode() == f"ERRNO=22\nSTATUS={words}"


def test_a_supervisor_hears_by_its_file_that_the_daemon_is_ready(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    port = free_port()
    command = [sys.executable, "-m", "mlxd", "serve", "--ready-fd", str(theirs)]
    command += ["--port", str(port), "--state", str(tmp_path / "s")]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[theirs])
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as told:
            assert told.read() == b"\n", (tmp_path / "log").read_text()
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            pass
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_file_that_nobody_has_opened_is_wrong_usage(tmp_path: Path) -> None:
    done = _serve(tmp_path, "--ready-fd", "77", prefix=[], pass_fds=[])
    assert done.returncode == 2
    assert "--ready-fd 77" in done.stderr
