"""No worker outlives its daemon: not even one that is stopped, or deep inside a step."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys

_PR_SET_PDEATHSIG = 1
_CREDENTIALS = struct.Struct("iII")
"""pid, uid, gid."""


def end_with_parent(sock: socket.socket) -> None:
    """Have the system kill this process when its daemon dies, where a system does that (Linux).

    Elsewhere the end of the socket has to do, which a process that is stopped does not see. `sock`
    was made by the daemon, and so tells whether it died before it could be asked for.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    daemon, _uid, _gid = _CREDENTIALS.unpack(said)
    if os.getppid() != daemon:
        os._exit(0)
