"""What a worker that does not answer a cancel is given time for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mlxd.control.farewell import Farewell
from mlxd.control.generation import Generation, Limits, Pulse
from mlxd.control.worker import Worker
from mlxd.core.clock import SystemClock
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc


async def condemned_after(pulse: Pulse) -> float:
    """Seconds in which a worker that says nothing is killed."""
    clock, peer = SystemClock(), SimpleNamespace(name="m", alive=True, condemned=False)
    began = clock.monotonic()

    def condemn(verdict: str) -> None:
        assert verdict == "unresponsive"
        peer.alive = False

    pulse.condemn = condemn
    limits = Limits(60.0, 60.0, 60.0, 0.01, lambda key: None)  # type: ignore[arg-type, return-value]
    await Farewell(peer, clock, pulse).outlast(Generation(1, limits, clock, pulse))
    return clock.monotonic() - began


async def test_one_that_said_that_it_would_be_deaf_is_not_killed_for_it() -> None:
    assert await condemned_after(Pulse()) < 0.08
    assert await condemned_after(Pulse(forgiven=SystemClock().monotonic() + 0.1)) > 0.1


async def test_it_says_so_and_when_it_is_over() -> None:
    clock, process = SystemClock(), SimpleNamespace(pid=1)
    worker: Any = Worker(ModelSpec("/m", 512), "m", clock, process)  # type: ignore[arg-type]
    worker.data_received(ipc.encode(ipc.Deaf(15.0)))
    assert worker._pulse.forgiven > clock.monotonic() + 14
    worker.data_received(ipc.encode(ipc.Deaf(0.0)))
    assert worker._pulse.forgiven <= clock.monotonic()
