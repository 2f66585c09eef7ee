"""A client that is gone without a word: its machine lost power, or its packets are dropped.

The kernel finds it, within `timeouts.client_write`: what was sent and is not acknowledged ends the
connection, and where nothing is to be sent it asks now and then whether anybody is there. It tells
of the end like of any other. Nor does it take much more than the other side has room for: what it
took it keeps, megabytes for each slow reader, and nobody sees that nothing is read.
"""

from __future__ import annotations

import contextlib
import socket
import sys

_PROBES = 3
_LATER = 1.0
"""Seconds: a client that is there and takes nothing is found first, and said to be that."""
_UNSENT_BYTES = 65536
_DARWIN_NOTSENT_LOWAT = 0x201
_DARWIN_DROP_TIME = 0x80  # TCP_RXT_CONNDROPTIME; Python has no names for these two


def bound_silence(sock: socket.socket, seconds: float) -> None:
    """Have a TCP connection end once its other side has not been heard for about so long."""
    probe = max(1, round(seconds / (_PROBES + 1)))
    tcp = socket.IPPROTO_TCP
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (tcp, socket.TCP_KEEPCNT, _PROBES)]
    options.append((tcp, socket.TCP_KEEPINTVL, probe))
    if sys.platform == "darwin":
        options.append((tcp, socket.TCP_KEEPALIVE, probe))
        options.append((tcp, _DARWIN_NOTSENT_LOWAT, _UNSENT_BYTES))
        options.append((tcp, _DARWIN_DROP_TIME, round(seconds + _LATER)))
    else:
        options.append((tcp, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES))
        options.append((tcp, socket.TCP_KEEPIDLE, probe))
        options.append((tcp, socket.TCP_USER_TIMEOUT, round((seconds + _LATER) * 1000)))
    with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile, as uvloop says it
        for level, name, value in options:
            sock.setsockopt(level, name, value)
