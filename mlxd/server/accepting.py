"""Takes connections off one listening socket, also when the process has no file left for them.

uvloop's own server asks again and again then, at the cost of a whole core, and answers nobody.
Here a few files are kept for that case: with them some connections are taken all the same, so that
the daemon says how it is, and the others are told that there is no room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

KEPT_FILES = 4
"""The last of them is for refusing."""
PAUSE_SECONDS = 0.1
"""Until it is tried again, when no file was left."""
_AT_ONCE = 16
"""Between two turns of the event loop: whoever has an answer under way gets the next of it."""
_MOST_WAITING = 65535
_ASKED = 65536
"""Bytes of a request that is refused unread."""
_QUIET_SECONDS = 60.0
"""Between two words about a shortage."""

Connection = Callable[[bool], asyncio.BaseProtocol]
"""The protocol of a new connection; told whether it was taken with a file that was kept."""
Refusal = Callable[[str], bytes]
"""The last words for whoever comes from an address; empty: it may come in."""


class Acceptor:
    """Of one socket, from `start` to `close`."""

    def __init__(
        self,
        sock: socket.socket,
        connection: Connection,
        no_room: Refusal = lambda _: b"",
        *,
        refusal: Refusal = lambda _: b"",
        shared: bool = False,
    ) -> None:
        """`no_room`: the last words for whom there is no file. `shared`: the socket has another
        owner, who goes on when this one stops.
        """
        self._refusal = refusal
        self._sock = sock
        self._connection = connection
        self._no_room = no_room
        self._shared = shared
        self._kept: list[int] = []
        self._quiet_until = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.taken = 0
        """Connections that were accepted, to be served or to be told that they are not."""
        self.emptied = 0
        """How often nobody was left who waited."""

    def start(self, backlog: int) -> None:
        self._sock.setblocking(False)
        self._sock.listen(backlog)
        self._keep_files()
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Accept no more; whoever the kernel has connected already is still taken: closing the
        socket would reset them. They wait on one that is shared.
        """
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._sock)
        self._let_go()
        if not self._shared:
            with contextlib.suppress(OSError):
                self._take(_MOST_WAITING)
        self._sock.close()

    async def settled(self) -> None:
        """Until all that was accepted is a connection."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> None:
        try:
            self._take(_AT_ONCE)
        except OSError as error:
            self._run_short(error)
        else:
            self._keep_files()

    def _take(self, most: int) -> None:
        """Whoever waits. Raises OSError when no more can be taken."""
        for _ in range(most):
            try:
                sock, address = self._next()
            except ConnectionAbortedError:
                continue
            except (BlockingIOError, InterruptedError):
                return
            words = self._refusal(_peer(address))
            if words:
                _say(sock, words)
            else:
                self._own(self._serve(sock, kept=False))

    def _next(self) -> tuple[socket.socket, Any]:
        try:
            found = self._sock.accept()
        except BlockingIOError:
            self.emptied += 1
            raise
        self.taken += 1
        return found

    def _run_short(self, error: OSError) -> None:
        """Take some with the files that are kept, and look again in a moment."""
        self._tell(error)
        with contextlib.suppress(OSError):
            while len(self._kept) > 1:
                os.close(self._kept.pop())
                sock, _address = self._next()
                self._own(self._serve(sock, kept=True))
            for _ in range(_AT_ONCE):
                if not self._kept:  # somebody else has taken the file that was let go for a moment
                    break
                self._refuse_one()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        self._pause = loop.call_later(PAUSE_SECONDS, self._look_again)

    def _refuse_one(self) -> None:
        """Raises OSError when nobody waits, or even that cannot be done."""
        os.close(self._kept.pop())
        try:
            sock, address = self._next()
            _say(sock, self._no_room(_peer(address)))
        finally:
            self._keep_files(1)

    def _look_again(self) -> None:
        self._pause = None
        self._keep_files()
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _tell(self, error: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.error("connections cannot be accepted: %s", error.strerror)

    def _keep_files(self, most: int = KEPT_FILES) -> None:
        with contextlib.suppress(OSError):
            while len(self._kept) < most:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _let_go(self) -> None:
        while self._kept:
            os.close(self._kept.pop())

    async def _serve(self, sock: socket.socket, *, kept: bool) -> None:
        connection = self._connection(kept)
        try:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: connection, sock)
        except OSError as error:  # its client has reset it: macOS lets no option of it be set then
            connection.connection_lost(error)
            sock.close()

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _peer(address: object) -> str:
    """Empty where it has none."""
    return str(address[0]) if isinstance(address, tuple) else ""


def _say(sock: socket.socket, words: bytes) -> None:
    """The last words, and the end. What has come is read: or those could be lost to a reset."""
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(words)
        sock.recv(_ASKED)
