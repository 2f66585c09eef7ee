"""What a service manager hands over: which sockets are served, and what becomes of the others."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlxd.server import inherited
from mlxd.server.inherited import Inherited, inherit
from mlxd.server.launchd import activated, activated_by

FIRST = 300
PID = 4711
SOURCE = "socket http of systemd"
Handed = Callable[..., Inherited]


def unmanaged(_name: str) -> list[int]:
    return []


def is_open(file: int) -> bool:
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def handed(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Handed:
    """Have sockets handed over by systemd, at numbers that are free here."""
    monkeypatch.setattr(inherited, "_FIRST", FIRST)

    def hand(*socks: socket.socket, **said: str) -> Inherited:
        for number, sock in enumerate(socks, start=FIRST):
            os.dup2(sock.fileno(), number)
        environ = {"LISTEN_PID": str(PID), "LISTEN_FDS": str(len(socks)), "HOME": "/", **said}
        found = inherit(environ, PID, unmanaged)
        assert environ == {"HOME": "/"}
        stack.callback(found.close)
        return found

    return hand


def tcp(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family)


def test_a_listener_called_http_says_host_and_port_and_goes_to_no_other_process(
    handed: Handed,
) -> None:
    with tcp() as sock:
        found = handed(sock, LISTEN_FDNAMES="http")
        host, port = sock.getsockname()
        assert found.overrides() == [
            ("server.listen.host", host, SOURCE), ("server.listen.port", str(port), SOURCE),
        ]  # fmt: skip
        assert [one.get_inheritable() for one in found.socks] == [False]
        assert (found.problem, found.warnings) == ("", ())
        found.close()
        assert not is_open(FIRST)
        with socket.create_connection((host, port), timeout=5):
            sock.accept()[0].close()


def test_the_one_that_others_can_reach_comes_first_then_ipv4(handed: Handed) -> None:
    with tcp("::1") as six, tcp() as four, tcp("0.0.0.0") as everywhere:
        found = handed(six, four, everywhere, LISTEN_FDNAMES="http:http:http")
        assert [host for host, _ in found.addresses()] == ["0.0.0.0", "127.0.0.1", "::1"]


def test_others_are_closed_and_told(handed: Handed) -> None:
    with tcp() as one, tcp() as two, tcp() as nameless:
        found = handed(one, two, nameless, LISTEN_FDNAMES="metrics:http")
        assert [sock.getsockname() for sock in found.socks] == [two.getsockname()]
    assert [is_open(FIRST + n) for n in range(3)] == [False, True, False]
    assert len(found.warnings) == 2
    assert "'metrics'" in found.warnings[0]


def unix(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "s"))
    sock.listen()
    return sock


def connected(_: Path) -> socket.socket:
    with tcp() as server:
        return socket.create_connection(server.getsockname())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (unix, r"is a unix-domain socket \(.*/s\): mlxd serves TCP"),
        (lambda _: socket.socket(type=socket.SOCK_DGRAM), "is no TCP socket"),
        (connected, "Accept=no"),
    ],
)  # fmt: skip
def test_one_that_cannot_be_served_is_refused_in_words_and_none_is_served(
    handed: Handed, tmp_path: Path, made: Callable[[Path], socket.socket], words: str
) -> None:
    with tcp() as good, made(tmp_path) as bad:
        found = handed(good, bad, LISTEN_FDNAMES="http:http")
    assert found.socks == ()
    assert re.fullmatch(f"the {SOURCE} .*{words}.*", found.problem), found.problem
    assert not is_open(FIRST)
    assert not is_open(FIRST + 1)


def test_a_file_that_is_no_socket_or_not_there_is_refused_in_words(handed: Handed) -> None:
    found = handed(LISTEN_FDS="1", LISTEN_FDNAMES="http")
    assert found.problem == f"the {SOURCE} is no socket: {os.strerror(errno.EBADF)}"
    with Path(os.devnull).open() as file:
        os.dup2(file.fileno(), FIRST)
    assert "is no socket" in handed(LISTEN_FDS="1", LISTEN_FDNAMES="http").problem
    assert not is_open(FIRST)


@pytest.mark.parametrize("pid", ["", "1", "x"])
def test_what_is_meant_for_another_process_is_left_alone_and_told(handed: Handed, pid: str) -> None:
    with tcp() as sock:
        found = handed(sock, LISTEN_FDNAMES="http", LISTEN_PID=pid)
        assert is_open(FIRST)
        os.close(FIRST)
    assert (found.socks, found.problem) == ((), "")
    assert "start it by exec" in found.warnings[0]


@pytest.mark.parametrize("count", ["many", "-1", "99999999"])
def test_a_count_that_is_none_is_told(handed: Handed, count: str) -> None:
    found = handed(LISTEN_FDS=count, LISTEN_FDNAMES="http")
    assert (found.socks, found.problem) == ((), "")
    assert count in found.warnings[0]


def test_by_hand_nothing_is_inherited() -> None:
    assert inherit({}, PID, unmanaged) == Inherited()
    assert activated("http") == []


LAUNCHD = """
#include <errno.h>
#include <stdlib.h>
#include <string.h>
int launch_activate_socket(const char *name, int **files, size_t *count) {
    if (getenv("TEST_FAILURE")) return atoi(getenv("TEST_FAILURE"));
    if (strcmp(name, "http")) return ENOENT;
    *count = 2;
    *files = malloc(*count * sizeof(int));
    (*files)[0] = atoi(getenv("TEST_FILE"));
    (*files)[1] = (*files)[0] + 1;
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """In place of macOS's own."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    folder = tmp_path_factory.mktemp("launchd")
    (folder / "launchd.c").write_text(LAUNCHD)
    command = [compiler, "-shared", "-fPIC", "-o", "launchd.so", "launchd.c"]
    subprocess.run(command, cwd=folder, check=True)
    return str(folder / "launchd.so")


class TestLaunchd:
    def test_its_files_are_taken_by_its_own_call(
        self, library: str, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_FILE", str(FIRST))
        with tcp() as four, tcp("::1") as six:
            os.dup2(four.fileno(), FIRST)
            os.dup2(six.fileno(), FIRST + 1)
            found = inherit({}, PID, lambda name: activated_by(library, name))
            stack.callback(found.close)
            assert found.source == "socket http of launchd"
            assert found.addresses() == [four.getsockname(), six.getsockname()[:2]]

    @pytest.mark.parametrize("number", [errno.ESRCH, errno.ENOENT])
    def test_who_is_not_its_job_has_none(
        self, library: str, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setenv("TEST_FAILURE", str(number))
        assert inherit({}, PID, lambda name: activated_by(library, name)) == Inherited()

    def test_a_socket_that_it_keeps_is_told(
        self, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_FAILURE", str(errno.EALREADY))
        found = inherit({}, PID, lambda name: activated_by(library, name))
        assert found.problem == f"launchd keeps the socket http: {os.strerror(errno.EALREADY)}"


class _OnMac(socket.socket):
    """Where SO_ACCEPTCONN cannot be asked for."""

    def getsockopt(self, *_: object) -> int:  # type: ignore[override]
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")


def test_where_a_listener_cannot_be_asked_one_without_a_peer_is_one() -> None:
    with _OnMac() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        assert inherited._listens(listener)
        accepted, _ = socket.socket.accept(listener)
        with accepted, _OnMac(fileno=accepted.detach()) as connected:
            assert not inherited._listens(connected)
