import contextlib
import socket

import pytest

from mlxd.server.silence import bound_silence


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


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="no TCP_USER_TIMEOUT here")
def test_what_is_not_acknowledged_ends_it_in_time(pair):
    _, sock = pair
    bound_silence(sock, 30.0)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 31_000


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
