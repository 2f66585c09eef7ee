"""What a worker that does not answer a cancel is given time for."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.control.farewell import Farewell
from mlxd.control.generation import Generation, Limits, Pulse
from mlxd.control.worker import Worker
from mlxd.core.clock import ManualClock
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc
from tests.support.virtual_time import VirtualLoop

CANCEL_ACK = 0.01


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def condemned_after(loop: VirtualLoop, pulse: Pulse) -> float:
    """Seconds in which a worker that says nothing is killed."""
    peer = SimpleNamespace(name="m", alive=True, condemned=False)
    began = loop.now

    def condemn(verdict: str) -> None:
        assert verdict == "unresponsive"
        peer.alive = False

    pulse.condemn = condemn
    limits = Limits(60.0, 60.0, 60.0, CANCEL_ACK, lambda key: None)  # type: ignore[arg-type, return-value]

    async def outlasted() -> None:
        await Farewell(peer, loop, pulse).outlast(Generation(1, limits, loop, pulse))

    loop.run(outlasted())
    return loop.now - began


def test_one_that_said_that_it_would_be_deaf_is_not_killed_for_it(loop: VirtualLoop) -> None:
    assert condemned_after(loop, Pulse()) == pytest.approx(CANCEL_ACK)
    forgiven = condemned_after(loop, Pulse(forgiven=loop.now + 0.1))
    assert 0.1 < forgiven < 0.1 + 3 * CANCEL_ACK


async def test_it_says_so_and_when_it_is_over() -> None:
    clock, process = ManualClock(), SimpleNamespace(pid=1)
    worker: Any = Worker(ModelSpec("/m", 512), "m", clock, process)  # type: ignore[arg-type]
    worker.data_received(ipc.encode(ipc.Deaf(15.0)))
    assert worker._pulse.forgiven == clock.monotonic() + 15
    worker.data_received(ipc.encode(ipc.Deaf(0.0)))
    assert worker._pulse.forgiven <= clock.monotonic()
