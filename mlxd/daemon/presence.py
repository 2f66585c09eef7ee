"""Where commands find the daemon: its lock, pid, address and admin socket, whatever becomes of the
state folder meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from mlxd import __version__
from mlxd.core.claim import AlreadyRunning, Claim
from mlxd.core.instance import Address
from mlxd.core.threads import Threads
from mlxd.server.admin_socket import AdminSocket

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks whether all of it is there, and until what failed is tried again."""
_ANNOUNCE_SECONDS = 5.0
"""For a word on the disk; a disk may hang."""


class Presence:
    """Makes it at the start, and anew where it is gone. What fails is logged once."""

    def __init__(
        self, claim: Claim, admin: AdminSocket, threads: Threads, warnings: list[str]
    ) -> None:
        """`warnings`: those of /health; a missing admin socket is one, for as long as it is."""
        self._claim = claim
        self._admin = admin
        self._threads = threads
        self._warnings = warnings
        self._place = ("", 0)
        """Host and port, as they are now."""
        self._announcing = asyncio.Lock()
        self._unannounced = ""
        """Why the commands are not told of it."""
        self._telling: asyncio.Future[None] | None = None
        self._no_admin = ""
        """Why there is no admin socket; empty: there is one."""

    def bind(self) -> None:
        """The admin socket, at the start. Without it the daemon serves all the same."""
        try:
            self._admin.bind()
        except OSError as error:
            self._lack_admin(error)

    async def announce(self, host: str, port: int) -> None:
        """Tell the commands where the daemon is: of two moves in a row, the last."""
        self._place = (host, port)
        async with self._announcing:
            why = await self._reason_not_announced()
            if why and why != self._unannounced:
                log.warning("%s", why)
            self._unannounced = why

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Make anew what somebody has removed, or a disk did not take; nothing of another daemon's
        that has claimed the folder since.
        """
        with contextlib.suppress(OSError):  # there is no thread for it now
            stands = await self._threads.run(self._claim.stands)
            if not (stands or self._unannounced):
                words = "mlxd.lock, mlxd.pid or daemon.json is gone from %s: it is made anew"
                log.warning(words, self._claim.state)
            if not stands or self._unannounced:
                await self.announce(*self._place)
            if not self._unannounced and not await self._threads.run(self._admin.stands):
                await self._bind_again()

    async def _bind_again(self) -> None:
        try:
            await self._threads.run(self._admin.bind)
        except OSError as error:
            self._lack_admin(error)
            return
        self._admin.serve()
        log.warning("the admin socket is made anew: %s", self._admin.path)
        self._have_admin()

    def _lack_admin(self, error: OSError) -> None:
        words = f"no admin socket at {self._admin.path}: {error.strerror or error}"
        if words != self._no_admin:
            self._have_admin()
            self._no_admin = words
            self._warnings.append(words)

    def _have_admin(self) -> None:
        if self._no_admin:
            self._warnings.remove(self._no_admin)
        self._no_admin = ""

    async def _reason_not_announced(self) -> str:
        """Empty: it is. A disk that hangs holds one thread."""
        if self._telling is not None and not self._telling.done():
            return _unwritten("the disk hangs")
        address = Address(os.getpid(), *self._place, __version__, str(self._admin.path))
        try:
            self._telling = self._threads.run(self._claim.announce, address)
            self._telling.add_done_callback(lambda told: told.cancelled() or told.exception())
            async with asyncio.timeout(_ANNOUNCE_SECONDS):
                await asyncio.wait({self._telling})
            self._telling.result()
        except (OSError, TimeoutError) as error:
            return _unwritten(str(error) or "the disk hangs")
        except AlreadyRunning as other:
            return f"commands find another daemon than this one: {other}"
        return ""


def _unwritten(why: str) -> str:
    return f"the state folder cannot be written: {why}"
