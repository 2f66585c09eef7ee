"""An engine process that has no model yet: it imports what an engine needs, says so, and waits.

Every worker begins as one: a fresh one is told its model at once, a kept one when that is asked
for.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

from mlxd.control.process import EngineProcess
from mlxd.core.clock import Clock, within
from mlxd.ipc import messages as ipc

log = logging.getLogger(__name__)


def _unwatched() -> None:
    pass


class Spare(asyncio.Protocol):
    """Has the process and its socket until somebody takes both over."""

    def __init__(self, process: EngineProcess, clock: Clock) -> None:
        self.process = process
        self.on_change: Callable[[], object] = _unwatched
        """Told when it is warm, and when it is gone."""
        self.warm = False
        """Everything is imported."""
        self.began = clock.monotonic()
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._frames = ipc.FrameReader()
        self._launched = False
        self._answer = b""
        """What it has said since it was launched, for whoever takes over."""
        self._answered = asyncio.Event()
        process.ended.add_done_callback(lambda _: self.on_change())

    @classmethod
    async def start(cls, temporary: Path, clock: Clock) -> Spare:
        """Raises OSError when the system gives no process."""
        process, sock = await EngineProcess.spawn(temporary, clock)
        spare = cls(process, clock)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: spare, sock=sock)
        except BaseException:  # nobody else knows of it
            spare.kill()
            raise
        return spare

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self.process.ended.done()

    @property
    def fit(self) -> bool:
        """Whether it could take a model now as well as a fresh one, and sooner."""
        return self.alive and self.warm and self.process.current

    async def launch(self, launch: ipc.Launch) -> None:
        """Have it load a model. What it says from now on is for whoever takes over."""
        self._launched = True
        await self.process.equip()
        if self._transport is not None:
            self._transport.write(ipc.encode(launch))

    async def answers(self, seconds: float) -> bool:
        """Whether it has heard its launch, and says so in time."""
        try:
            async with within(self._clock, seconds):
                await self._answered.wait()
        except TimeoutError:
            return False
        return bool(self._answer)

    def hand_over(self, to: asyncio.Protocol) -> None:
        """From now on `to` speaks with the process. It hears what has been said, and whether that
        was all, once whoever made it waits for something.
        """
        self.on_change = _unwatched
        if self._transport is not None:
            to.connection_made(self._transport)
        asyncio.get_running_loop().call_soon(self._let_go, to)

    def _let_go(self, to: asyncio.Protocol) -> None:
        """What comes before this is kept here, so that nothing overtakes it."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.set_protocol(to)
        if said := self._frames.rest + self._answer:
            to.data_received(said)
        if transport is None:
            to.connection_lost(None)

    def kill(self) -> None:
        """SIGKILL its whole group: there is nothing in it to be lost."""
        self.process.signal(signal.SIGKILL)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._launched:
            self._answer += data
            self._answered.set()
            return
        try:
            said = [ipc.decode_up(frame) for frame in self._frames.feed(data)]
        except ipc.BrokenFrame as error:
            log.warning("spare engine process %s is of no use: %s", self.pid, error)
            self.kill()
            return
        if any(isinstance(message, ipc.Warm) for message in said):
            self.warm = True
            self.on_change()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._answered.set()
