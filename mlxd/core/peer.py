"""Which process is at the other end of a unix socket, as far as the system tells."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

_UCRED = struct.Struct("iII")
"""pid, uid, gid."""
_DARWIN_LEVEL = 0  # SOL_LOCAL; Python has no names for these three
_DARWIN_CRED = 0x001
_DARWIN_PID = 0x002
_XUCRED = struct.Struct("IIhxx16I")
"""Version, uid, how many groups; the groups."""


class Peer(NamedTuple):
    pid: int
    """0: it is none that this process can see, such as one of another container."""
    uid: int


def peer_at(sock: socket.socket) -> Peer | None:
    """Who connected, or whom we have connected to; None: the system does not tell."""
    try:
        if sys.platform == "darwin":
            _, uid, *_ = _XUCRED.unpack(sock.getsockopt(_DARWIN_LEVEL, _DARWIN_CRED, _XUCRED.size))
            return Peer(sock.getsockopt(_DARWIN_LEVEL, _DARWIN_PID), uid)
        said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except (OSError, struct.error):  # it is gone
        return None
    pid, uid, _ = _UCRED.unpack(said)
    return Peer(pid, uid)
