"""The unix socket of the admin side: mode 0600, in the state folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from mlxd.core import aside
from mlxd.server.accepting import Acceptor
from mlxd.server.connection import Connection
from mlxd.server.connections import GuardedServer

MAX_PATH_BYTES = 100
"""A socket's path may have 103 bytes on macOS, 107 on Linux."""
_BACKLOG = 64


def path_for(state: Path) -> Path:
    """`admin.sock` in the state folder; where that is too long, a short one in a folder of our own
    in the temporary one, always the same for the same state folder.
    """
    usual = state / "admin.sock"
    if len(os.fsencode(usual)) <= MAX_PATH_BYTES:
        return usual
    name = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mlxd-{os.geteuid()}" / f"{name}.sock"


class AdminSocket:
    """Serves the admin side on its path."""

    def __init__(self, server: GuardedServer, state: Path) -> None:
        self.path = path_for(state)
        self._shared = self.path.parent != state
        self._server = server
        self._sock: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._bound: os.stat_result | None = None
        """Which file it is."""

    def bind(self) -> None:
        """From here on clients may connect, and wait until it serves. Raises OSError.

        The caller holds the state folder: a socket that is there is stale.
        """
        if self._shared:
            _make_private(self.path.parent)
        if self.path.is_dir():
            aside.set_aside(self.path, "it is no socket")
        self.path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(str(self.path))
            self.path.chmod(0o600)  # nobody can connect before it listens
            sock.listen(_BACKLOG)
            self._bound = self.path.lstat()
        except OSError:
            sock.close()
            raise
        self._sock = sock

    def stands(self) -> bool:
        """Whether it is where commands look: it could be bound, and nobody has removed it."""
        try:
            return self._bound is not None and os.path.samestat(self._bound, self.path.lstat())
        except OSError:
            return False

    def serve(self) -> None:
        """Answer, if it could be bound; from now on there alone."""
        if self._sock is not None:
            if self._acceptor is not None:
                self._acceptor.close()
            self._acceptor = Acceptor(self._sock, self._connection, self._server.no_room)
            self._acceptor.start(_BACKLOG)

    async def close(self) -> None:
        """End every connection, and remove the socket."""
        if self._acceptor is not None:
            self._acceptor.close()
            await asyncio.sleep(0)  # what was accepted in this turn is a connection in the next
            if self.stands():
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
            self._server.pre_shutdown()
            await self._server.shutdown(0.5)

    def _connection(self, scarce: bool) -> Connection:
        return self._server.connection(scarce=scarce)


def _make_private(folder: Path) -> None:
    """In a folder that everybody writes to. Raises OSError if others could put something there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    ours = status.st_uid in (os.geteuid(), 0)
    if not ours or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise PermissionError(errno.EACCES, f"{folder} is open to other users")
