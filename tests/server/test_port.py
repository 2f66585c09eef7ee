import socket

import pytest

from mlxd.server.port import PortTaken, bind


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_a_port_that_answers_is_taken_before_anything_is_bound(listener, monkeypatch):
    """As on the BSDs, where binding beside the other would succeed."""
    made = []

    class Recorded(socket.socket):
        def bind(self, address):
            made.append(address)

    monkeypatch.setattr("mlxd.server.port.socket.socket", Recorded)
    number = listener.getsockname()[1]
    with pytest.raises(PortTaken, match=f"127.0.0.1:{number}"):
        bind("127.0.0.1", number)
    assert made == []


def test_a_port_is_free_once_nobody_answers(listener):
    number = listener.getsockname()[1]
    listener.close()
    with bind("127.0.0.1", number) as sock:
        assert sock.getsockname()[1] == number


def test_a_name_is_taken_by_its_ipv4_address(monkeypatch):
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: [six, four])
    with bind("localhost", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_a_name_that_no_host_can_have_is_refused_as_one():
    with pytest.raises(OSError, match="not a host name"):
        bind("a" * 70 + ".localhost", 0)
