"""A worker without a process: a test reads what it is told, and says what it says."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from mlxd.control.worker import Worker
from mlxd.core.clock import Clock, SystemClock
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc


class Ending:
    """A process that ends when it is told to."""

    stderr = ""
    suspended = False

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.deaf = False
        """It does not end, whatever it is told."""
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done() and not self.deaf:
            self.ended.set_result(-number)

    async def gone(self, timeout: float) -> bool:
        done, _ = await asyncio.wait({self.ended}, timeout=timeout)
        return bool(done)


class Pipe(asyncio.Transport):
    """Keeps what the daemon says to the worker."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = ipc.FrameReader()
        self.said: list[ipc.Down] = []

    def write(self, data: Any) -> None:
        self.said += [ipc.decode_down(frame) for frame in self.frames.feed(data)]

    def close(self) -> None:
        pass


class Conversation:
    """A worker without a process: what it is told, and what it says."""

    def __init__(
        self, budget: ipc.Budget | None = None, *, clock: Clock | None = None, pid: int = 2
    ) -> None:
        self.process = Ending(pid)
        process: Any = self.process
        clock = clock or SystemClock()
        self.worker = Worker(ModelSpec("/m", 512), "m", clock, process, budget)
        self.pipe = Pipe()
        self.worker.connection_made(self.pipe)
        self.burial = asyncio.create_task(self.worker._bury())

    def says(self, *messages: ipc.Up) -> None:
        self.worker.data_received(b"".join(ipc.encode(message) for message in messages))

    async def ends(self, status: int) -> None:
        self.process.ended.set_result(status)
        await self.burial

    @property
    def ids(self) -> list[int]:
        """Of the generations that it was asked for."""
        return [message.id for message in self.of(ipc.Generate)]

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.pipe.said if isinstance(message, kind)]
