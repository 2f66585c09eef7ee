import contextlib
import socket

import pytest

from mlxd.server.silence import acknowledged, bound_silence, queued, unheard


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        one = socket.create_connection(listening.getsockname())
        other, _ = listening.accept()
        yield one, other
        one.close()
        other.close()


@pytest.mark.parametrize(("seconds", "probe"), [(30.0, 8), (0.5, 1)])
def test_a_connection_asks_in_time_whether_anybody_is_there(pair, seconds, probe):
    _, sock = pair
    bound_silence(sock, seconds)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == probe
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) * probe <= max(seconds, 3)


def test_what_policy_allows_and_the_kernel_does_not_is_the_most_it_takes(pair):
    _, sock = pair
    bound_silence(sock, 365 * 86400.0)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 32767


@pytest.mark.parametrize("error", [OSError, ValueError, OverflowError])
def test_an_option_that_is_refused_drops_no_other(error):
    tried = []

    class Refusing:
        def setsockopt(self, *option):
            tried.append(option)
            raise error

    bound_silence(Refusing(), 30.0)  # type: ignore[arg-type]
    assert len(tried) >= 5


def test_what_the_kernel_still_holds_is_known(pair):
    one, sock = pair
    assert queued(sock) == 0
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65_536))
    before, taken = queued(sock), acknowledged(sock)
    assert before > 0
    one.settimeout(5)
    read = 0
    while queued(sock) >= before and read < 10**8:
        read += len(one.recv(65_536))
    assert queued(sock) < before
    assert taken is None or (acknowledged(sock) or 0) > taken
    sock.close()
    assert queued(sock) == 0
    assert acknowledged(sock) is None


class Uvloops:
    """How uvloop's stand-in for a socket says that it is closed."""

    def setsockopt(self, *option):
        raise ValueError("negative file descriptor")


def test_one_that_has_ended_meanwhile_is_left_alone(pair):
    _, sock = pair
    sock.close()
    bound_silence(sock, 30.0)
    bound_silence(Uvloops(), 30.0)  # type: ignore[arg-type]


def test_the_kernel_takes_little_for_a_client_that_reads_nothing(pair):
    one, sock = pair
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    bound_silence(sock, 30.0)
    sock.setblocking(False)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while taken < 10**8:
            taken += sock.send(bytes(16_384))
    assert taken < 512 * 1024


def test_what_has_come_and_is_not_read_is_known(pair):
    one, sock = pair
    assert not unheard(sock)
    one.sendall(b"x")
    sock.settimeout(5)
    sock.recv(1, socket.MSG_PEEK)
    assert unheard(sock)
    sock.recv(1)
    assert not unheard(sock)
    sock.close()
    assert not unheard(sock)
