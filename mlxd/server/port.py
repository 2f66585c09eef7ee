"""Takes the port before anything heavy is imported, so that a second start ends at once."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxd.core.instance import authority

_PROBE_SECONDS = 0.3


class PortTaken(Exception):
    """Somebody else listens there."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a daemon begins to listen with."""

    socks: tuple[socket.socket, ...]
    """At least one; the first is the one that policies and commands name."""
    shared: bool = False
    """A service manager has them too. Who waits there when the daemon goes waits for the next."""


def resolve(host: str, port: int) -> tuple[Any, ...]:
    """(family, kind, protocol, address) of where to listen. Raises OSError.

    A name that has an IPv4 address is taken by that: `localhost` is 127.0.0.1 everywhere.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a label of more than 63 characters
        raise OSError(errno.EINVAL, "not a host name") from error
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, kind, protocol, address


def bind(host: str, port: int, own: Sequence[socket.socket] = ()) -> socket.socket:
    """A bound socket that listens. Raises PortTaken, OSError.

    `own` are sockets of ours that listen already: one on the same port (127.0.0.1, where all
    addresses are wanted now) is no obstacle.
    """
    family, kind, protocol, address = resolve(host, port)
    beside = [sock for sock in own if port and sock.getsockname()[1] == port]
    if port and not beside and _answers(family, address):
        raise PortTaken(authority(host, port))
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # there, two sockets may only overlap if both say so
            for one in (sock, *beside) if beside else ():
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(1)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(authority(host, port)) from error
        raise
    return sock


def _answers(family: int, address: Any) -> bool:
    """Whether somebody accepts connections there.

    With SO_REUSEADDR the BSDs, macOS among them, let 127.0.0.1 and 0.0.0.0 be bound to the same
    port by two processes; binding alone would not notice the other.
    """
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(address)
        except OSError:
            return False
        # A port that is free may be given to the probe itself, which then reaches itself.
        return bool(probe.getsockname() != probe.getpeername())
