"""The sockets that launchd keeps for its job, where this process is one."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

_SYSTEM = "/usr/lib/libSystem.B.dylib"
_NONE = (errno.ESRCH, errno.ENOENT)
"""launchd does not manage this process; its job has no such socket."""


def activated(name: str) -> list[int]:
    """The files of a socket, by its name in the job's `Sockets`; none where there is no such
    socket. Raises OSError.
    """
    return activated_by(_SYSTEM, name) if sys.platform == "darwin" else []


def activated_by(library: str, name: str) -> list[int]:
    """As `activated`, by the `launch_activate_socket` of a library."""
    system = ctypes.CDLL(library)
    activate = system.launch_activate_socket
    activate.argtypes = (
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.POINTER(ctypes.c_int)),
        ctypes.POINTER(ctypes.c_size_t),
    )
    activate.restype = ctypes.c_int
    files, count = ctypes.POINTER(ctypes.c_int)(), ctypes.c_size_t()
    failure = activate(name.encode(), ctypes.byref(files), ctypes.byref(count))
    if failure in _NONE:
        return []
    if failure:
        raise OSError(failure, os.strerror(failure))
    try:
        return [files[index] for index in range(count.value)]
    finally:
        system.free.argtypes = (ctypes.c_void_p,)
        system.free(files)
