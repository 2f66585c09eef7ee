import asyncio
import signal
from typing import Any

import pytest

from mlxd.control.worker import Worker
from mlxd.core.clock import SystemClock
from mlxd.core.models import ModelSpec


class Wedged:
    """A process that hears nothing but SIGKILL."""

    pid = 1

    def __init__(self) -> None:
        self.signals: list[signal.Signals] = []
        self.waited = asyncio.Event()

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)

    async def gone(self, timeout: float) -> bool:
        self.waited.set()
        await asyncio.sleep(3600)
        return False


async def test_a_stop_that_is_given_up_leaves_no_process_behind():
    process: Any = Wedged()
    worker = Worker(ModelSpec("/m", 512), "m", SystemClock(), process)
    stopping = asyncio.create_task(worker.stop(grace=10))
    await process.waited.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert process.signals == [signal.SIGKILL]
