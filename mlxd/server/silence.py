"""A client that is gone without a word: its machine lost power, or its packets are dropped.

Where nothing is to be sent, the kernel asks now and then whether anybody is there, within
`timeouts.client_write`, and tells of the end like of any other. What was sent and is not
acknowledged is seen by the sweep over all connections: TCP_USER_TIMEOUT of Linux would also cut a
client that reads slowly but steadily, for it counts on over all times without room for a segment.
Nor does the kernel take much more than the other side has room for: what it took it keeps,
megabytes for each slow reader, and nobody sees that nothing is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios

_PROBES = 3
_LATER = 1.0
"""Seconds: a client that is there and takes nothing is found first, and said to be that."""
_UNSENT_BYTES = 65536
_MOST_PROBE_SECONDS = 32767
_MOST = 2**31 - 1
_INFO_BYTES = 128
_BYTES_ACKED = 120
"""Where tcp_info has it, since Linux 4.1."""
_DARWIN_NOTSENT_LOWAT = 0x201
_DARWIN_DROP_TIME = 0x80  # TCP_RXT_CONNDROPTIME
_DARWIN_NWRITE = 0x1024  # SO_NWRITE; Python has no names for these three


def bound_silence(sock: socket.socket, seconds: float) -> None:
    """Have a TCP connection end once its other side has not been heard for about so long."""
    probe = min(max(1, round(seconds / (_PROBES + 1))), _MOST_PROBE_SECONDS)
    tcp = socket.IPPROTO_TCP
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (tcp, socket.TCP_KEEPCNT, _PROBES)]
    options.append((tcp, socket.TCP_KEEPINTVL, probe))
    if sys.platform == "darwin":
        options.append((tcp, socket.TCP_KEEPALIVE, probe))
        options.append((tcp, _DARWIN_NOTSENT_LOWAT, _UNSENT_BYTES))
        options.append((tcp, _DARWIN_DROP_TIME, min(round(seconds + _LATER), _MOST)))
    else:
        options.append((tcp, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES))
        options.append((tcp, socket.TCP_KEEPIDLE, probe))
    for level, name, value in options:
        # It has ended meanwhile, as uvloop says it; or this kernel knows no such option or value.
        with contextlib.suppress(OSError, ValueError, OverflowError):
            sock.setsockopt(level, name, value)


def queued(sock: socket.socket) -> int:
    """Bytes that the kernel has for the other side, and that have not been acknowledged."""
    with contextlib.suppress(OSError, ValueError):
        if sys.platform == "darwin":
            return sock.getsockopt(socket.SOL_SOCKET, _DARWIN_NWRITE)
        found: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return found
    return 0


def unheard(sock: socket.socket) -> bool:
    """The other side has sent something that is not read."""
    with contextlib.suppress(OSError, ValueError):
        return fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)) != bytes(4)
    return False


def acknowledged(sock: socket.socket) -> int | None:
    """Bytes that the other side has taken, since it connected; None: nobody knows."""
    if sys.platform == "linux" and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError, ValueError, struct.error):
            told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
            found: int = struct.unpack_from("Q", told, _BYTES_ACKED)[0]
            return found
    return None
