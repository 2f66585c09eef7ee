"""Who is at the other end of a unix socket, as far as the system tells."""

from __future__ import annotations

import os
import socket

from aiohttp import web

from mlxd.core.errors import Forbidden
from mlxd.core.peer import Peer, peer_at
from mlxd.server.edge import caller_of


def peer_of(request: web.BaseRequest) -> str:
    """Such as `uid 501, pid 4242`; empty where the system does not tell."""
    found = _peer(request)
    return f"uid {found.uid}, pid {found.pid}" if found is not None else ""


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
    found = _peer(request)
    return found is not None and found.uid not in (0, os.geteuid())


def _peer(request: web.BaseRequest) -> Peer | None:
    sock = _socket(request)
    return peer_at(sock) if sock is not None and sock.family == socket.AF_UNIX else None


def _socket(request: web.BaseRequest) -> socket.socket | None:
    return request.transport.get_extra_info("socket") if request.transport is not None else None
