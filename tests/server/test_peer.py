"""Who is at the other end of the admin socket, by what each system tells."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import Any, cast

import pytest

from mlxd.server.peer import is_stranger, peer_of


class _Transport:
    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def get_extra_info(self, name: str) -> Any:
        return self._sock if name == "socket" else None


class _Request:
    def __init__(self, sock: Any) -> None:
        self.transport = _Transport(sock)


class _OfMac:
    """As macOS answers."""

    family = socket.AF_UNIX

    def __init__(self, uid: int | None) -> None:
        self._uid = uid

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        assert level == 0
        if self._uid is None:
            raise OSError(errno.ENOTCONN, "Socket is not connected")
        if option == 2:
            return 4242
        assert (option, size) == (1, 76)
        return struct.pack("IIhxx16I", 0, self._uid, 2, 20, 12, *(14 * [0]))


def request(sock: Any) -> Any:
    return cast("Any", _Request(sock))


@pytest.mark.skipif(sys.platform != "linux", reason="it has SO_PEERCRED")
def test_linux_tells() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(request(ours)) == f"uid {os.geteuid()}, pid {os.getpid()}"
        assert not is_stranger(request(ours))


def test_a_mac_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peer_of(request(_OfMac(501))) == "uid 501, pid 4242"
    assert not is_stranger(request(_OfMac(0)))
    assert not is_stranger(request(_OfMac(os.geteuid())))
    assert is_stranger(request(_OfMac(os.geteuid() + 1)))


def test_of_who_is_gone_a_mac_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peer_of(request(_OfMac(None))) == ""
    assert not is_stranger(request(_OfMac(None)))
