"""Who is at the other end of a unix socket, as far as the system tells."""

from __future__ import annotations

import os
import socket
import struct
import sys

from aiohttp import web

from mlxd.core.errors import Forbidden
from mlxd.server.edge import caller_of

_UCRED = struct.Struct("iII")
"""pid, uid, gid."""
_DARWIN_LEVEL = 0  # SOL_LOCAL; Python has no names for these three
_DARWIN_CRED = 0x001
_DARWIN_PID = 0x002
_XUCRED = struct.Struct("IIhxx16I")
"""Version, uid, how many groups; the groups."""


def peer_of(request: web.BaseRequest) -> str:
    """Such as `uid 501, pid 4242`; empty where the system does not tell."""
    found = _credentials(request)
    return f"uid {found[1]}, pid {found[0]}" if found is not None else ""


def asker_of(request: web.BaseRequest) -> str:
    """Who changes something, for the history: a process on the socket; over TCP a key, or the page,
    and from where.
    """
    caller, sock = caller_of(request), _socket(request)
    if request.transport is None or (sock is not None and sock.family == socket.AF_UNIX):
        return peer_of(request)
    return f"{f'key {caller.key}' if caller.key else 'the page'}, {caller.address}"


def check_owner(request: web.BaseRequest) -> None:
    """The admin socket's: its own user and root may ask. Raises Forbidden."""
    if is_stranger(request):
        raise Forbidden(
            "the admin socket answers its own user and root",
            would_pass="the same request of the user who runs mlxd, or of root",
        )


def is_stranger(request: web.BaseRequest) -> bool:
    """Another user than root and ours; False where the system does not tell: then the socket's
    mode alone keeps them out.
    """
    found = _credentials(request)
    return found is not None and found[1] not in (0, os.geteuid())


def _credentials(request: web.BaseRequest) -> tuple[int, int] | None:
    """(pid, uid)."""
    sock = _socket(request)
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    try:
        if sys.platform == "darwin":
            _, uid, *_ = _XUCRED.unpack(sock.getsockopt(_DARWIN_LEVEL, _DARWIN_CRED, _XUCRED.size))
            return sock.getsockopt(_DARWIN_LEVEL, _DARWIN_PID), uid
        said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except (OSError, struct.error):  # it is gone
        return None
    pid, uid, _ = _UCRED.unpack(said)
    return pid, uid


def _socket(request: web.BaseRequest) -> socket.socket | None:
    return request.transport.get_extra_info("socket") if request.transport is not None else None
