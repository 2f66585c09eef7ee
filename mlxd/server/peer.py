"""Who is at the other end of a unix socket, as far as the system tells."""

from __future__ import annotations

import os
import socket
import struct

from aiohttp import web

_UCRED = struct.Struct("iII")


def peer_of(request: web.BaseRequest) -> str:
    """Such as `uid 501, pid 4242`; empty where the system does not tell."""
    found = _credentials(request)
    return f"uid {found[1]}, pid {found[0]}" if found is not None else ""


def is_stranger(request: web.BaseRequest) -> bool:
    """Another user than root and ours; False where the system does not tell: then the socket's
    mode alone keeps them out.
    """
    found = _credentials(request)
    return found is not None and found[1] not in (0, os.geteuid())


def _credentials(request: web.BaseRequest) -> tuple[int, int] | None:
    """(pid, uid)."""
    option = getattr(socket, "SO_PEERCRED", None)
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    if option is None or sock is None:
        return None
    try:
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _UCRED.size))
    except OSError:
        return None
    return pid, uid
