from __future__ import annotations

import asyncio
import signal
import struct
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest

from mlxd.control.generation import Limits
from mlxd.control.order import Order
from mlxd.control.worker import Worker
from mlxd.core.caller import Priority
from mlxd.core.clock import ManualClock, SystemClock
from mlxd.core.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelLoadFailed,
    PolicyLine,
    WorkerCrashed,
)
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelSpec
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc import messages as ipc
from tests.support.conversation import Conversation


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


class Freeing:
    """A process that hears nothing but SIGKILL, and gives memory back for a while. Its time is told
    by what is asked of it.
    """

    pid = 3
    stderr = ""
    suspended = False

    def __init__(self, seconds: float, ends: float = 1e9) -> None:
        self.now = 0.0
        self.signals: list[tuple[signal.Signals, float]] = []
        self.worker: Any = None
        self._seconds = seconds
        self._ends = ends

    def signal(self, number: signal.Signals) -> None:
        self.signals.append((number, self.now))

    async def gone(self, timeout: float) -> bool:
        self.now += timeout
        left = int(1000 - min(self.now, self._seconds) * 10)
        self.worker.data_received(ipc.encode(ipc.Pong(1, 0, ipc.Memory(left, 0, 1000))))
        return self.now >= self._ends


@pytest.mark.parametrize(
    ("frees", "grace", "killed"),
    [
        (0.0, 10.0, 10.0),
        (5.0, 10.0, 10.0),
        (14.5, 10.0, 16.0),
        (100.0, 10.0, 30.0),
        (100.0, 40.0, 40.0),
        (0.0, 0.5, 0.5),
        (0.0, 7.3, 7.3),
    ],
)
async def test_a_worker_that_frees_memory_is_given_time(
    frees: float, grace: float, killed: float
) -> None:
    process = Freeing(1.0 + frees)
    worker = Worker(ModelSpec("/m", 512), "m", SystemClock(), cast("Any", process))
    process.worker = worker
    await worker.stop(grace)
    (term, began), (kill, at) = process.signals
    assert (term, kill) == (signal.SIGTERM, signal.SIGKILL)
    assert at - began == pytest.approx(killed, abs=0.01)


async def test_a_worker_that_ends_while_it_frees_memory_is_not_killed() -> None:
    process = Freeing(100.0, ends=20.0)
    worker = Worker(ModelSpec("/m", 512), "m", SystemClock(), cast("Any", process))
    process.worker = worker
    await worker.stop(10.0)
    assert [number for number, _ in process.signals] == [signal.SIGTERM]


def order() -> Order:
    limits = Limits(60, 60, 60, 1, lambda key: PolicyLine(key, "x", "y"))
    request = GenerationRequest(model="m", text="x")
    return Order(
        request, Sampling(), 100, 50, 500, limits, 0.0, expected_output=77, wait_seconds=3.0
    )


def test_an_order_that_is_too_long_for_a_message_is_the_clients_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ipc, "MAX_FRAME_BYTES", 100)
    with pytest.raises(InvalidRequest, match="too large for a worker"):
        order().frame(1, None)


FOOTPRINT = Footprint(1000, ())


async def test_a_need_without_an_owner_is_answered_with_what_is_allowed_already():
    talk = Conversation(ipc.Budget(100, 200, 10))
    talk.says(ipc.Need(7, 150))
    assert talk.pipe.said == [ipc.Budget(100, 200, 10, answers=7)]
    assert talk.worker.budget == ipc.Budget(100, 200, 10)


async def test_a_need_is_for_whoever_owns_memory_to_answer():
    talk = Conversation(ipc.Budget(100, 200, 10))
    asked: list[ipc.Need] = []
    talk.worker.on_need = lambda _, need: asked.append(need)
    talk.says(ipc.Need(7, 150))
    assert asked == [ipc.Need(7, 150)]
    assert talk.pipe.said == []
    talk.worker.set_budget(ipc.Budget(150, 200, 10, answers=7))
    assert talk.pipe.said == [ipc.Budget(150, 200, 10, answers=7)]
    assert talk.worker.budget == ipc.Budget(150, 200, 10), "an answer answers once"


async def test_what_a_worker_holds_is_what_it_said_last():
    talk = Conversation()
    assert talk.worker.memory == ipc.Memory(0, 0, 0)
    assert Conversation().worker.footprint is None
    ready = ipc.Ready(True, 5, 5, 1.0, 40, False, False, FOOTPRINT, peak_bytes=60)
    talk.says(ready)
    assert talk.worker.memory == ipc.Memory(40, 0, 60)
    assert talk.worker.footprint == FOOTPRINT
    talk.says(ipc.Output(1, [], ipc.Memory(50, 5, 70)), ipc.Output(2, []))
    assert talk.worker.memory == ipc.Memory(50, 5, 70)
    talk.says(ipc.Pong(1, 1, ipc.Memory(51, 6, 71)))
    assert talk.worker.memory == ipc.Memory(51, 6, 71)
    talk.worker.trim()
    assert talk.pipe.said == [ipc.Trim()]


async def test_a_busy_time_is_told_to_whoever_learns():
    talk = Conversation()
    seen: list[ipc.Observed] = []
    talk.says(ipc.Observed(1, 2, 3, 4))
    talk.worker.on_observed = lambda _, observed: seen.append(observed)
    talk.says(ipc.Observed(5, 6, 7, 8))
    assert seen == [ipc.Observed(5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("status", "out_of_memory", "error"),
    [(71, True, InsufficientMemory), (70, False, WorkerCrashed), (-9, False, WorkerCrashed)],
)
async def test_how_a_process_ended_is_known_and_said(status, out_of_memory, error):
    talk = Conversation()
    over: list[bool] = []
    talk.worker.on_end = lambda worker: over.append(worker.out_of_memory)
    bursts = talk.worker.generate(order())
    asking = asyncio.ensure_future(anext(bursts))
    await asyncio.sleep(0)
    await talk.ends(status)
    assert over == [out_of_memory]
    with pytest.raises(error):
        await asking


async def test_the_newest_generation_of_the_lowest_class_is_ended_first():
    talk = Conversation()
    classes: tuple[Priority, ...] = ("low", "high", "low", "medium")
    each = [talk.worker.generate(replace(order(), priority=klass)) for klass in classes]
    asking = [asyncio.ensure_future(anext(bursts)) for bursts in each]
    await asyncio.sleep(0)
    ranks = []
    while (lowest := talk.worker.lowest) is not None:
        ranks.append(lowest[0])
        assert talk.worker.end_lowest(InsufficientMemory("memory is short"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ranks == [2, 2, 1, 0]
    assert {m.id for m in talk.of(ipc.Cancel)} == {1, 2, 3, 4}
    talk.says(ipc.Output(1, [ipc.Cancelled(id) for id in (1, 2, 3, 4)]))
    await asyncio.gather(*asking, return_exceptions=True)


async def test_the_newest_generation_is_ended_first():
    talk = Conversation()
    older, newer = talk.worker.generate(order()), talk.worker.generate(order())
    asking = [asyncio.ensure_future(anext(bursts)) for bursts in (older, newer)]
    await asyncio.sleep(0)
    assert talk.worker.end_lowest(InsufficientMemory("memory is short"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [m.id for m in talk.of(ipc.Cancel)] == [2]
    talk.says(ipc.Output(1, [ipc.Cancelled(2)]))
    with pytest.raises(InsufficientMemory):
        await asking[1]
    assert not asking[0].done()
    assert talk.worker.end_lowest(InsufficientMemory("still"))
    assert not talk.worker.end_lowest(InsufficientMemory("nobody is left"))
    talk.says(ipc.Output(2, [ipc.Cancelled(1)]))
    with pytest.raises(InsufficientMemory):
        await asking[0]


async def test_an_order_says_what_to_keep_memory_for_and_how_long_to_wait():
    talk = Conversation()
    async with aclosing(talk.worker.generate(order())) as bursts:
        asking = asyncio.ensure_future(anext(bursts))
        await asyncio.sleep(0)
        (generate,) = talk.of(ipc.Generate)
        assert (generate.expected_output, generate.wait_seconds) == (77, 3.0)
        talk.says(ipc.Accepted(1, 3))
        await asking
        talk.says(ipc.Output(1, [ipc.Ended(1, "stop", 3, 4, 0, 0.1, 0.2)]))


async def test_a_crash_that_is_seen_before_anybody_kills_it_was_not_asked_for():
    talk = Conversation()
    talk.process.deaf = True
    talk.worker.connection_lost(None)
    talk.worker.kill()
    await talk.ends(-11)
    assert talk.worker.exit is not None
    assert not talk.worker.exit.asked


async def test_the_end_of_one_that_was_told_to_end_was_asked_for():
    talk = Conversation()
    talk.process.deaf = True
    talk.worker.kill()
    talk.worker.connection_lost(None)
    await talk.ends(-9)
    assert talk.worker.exit is not None
    assert talk.worker.exit.asked


async def test_a_time_in_which_the_daemon_stood_still_does_not_count_for_its_end():
    clock = ManualClock()
    talk = Conversation(clock=clock)
    gone = asyncio.create_task(talk.worker.gone(0.02))
    await asyncio.sleep(0.1)
    assert not gone.done()
    clock.advance(1)
    assert await gone is False
    await talk.ends(0)
    assert await talk.worker.gone(0.02)


async def test_a_worker_that_an_upgrade_has_brought_loads_nothing_and_says_what_to_do() -> None:
    talk = Conversation()
    frame = msgspec.msgpack.encode({"type": "hello", "protocol": ipc.PROTOCOL + 1})
    talk.worker.data_received(struct.pack("!I", len(frame)) + frame)
    with pytest.raises(ModelLoadFailed, match="has to be restarted") as refused:
        await talk.worker.until_ready()
    assert refused.value.final, "another attempt ends the same"
    assert talk.worker.condemned


class Loading:
    """A process that loads for ever."""

    pid = 4
    stderr = ""

    def __init__(self, *, suspended: bool) -> None:
        self.suspended = suspended
        self.signals: list[signal.Signals] = []

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)


@pytest.mark.parametrize(("stopped", "killed"), [(True, True), (False, False)])
async def test_a_load_that_a_signal_has_stopped_is_not_waited_for(
    stopped: bool, killed: bool
) -> None:
    process = Loading(suspended=stopped)
    worker = Worker(ModelSpec("/m", 512), "m", SystemClock(), cast("Any", process))
    waiting = asyncio.create_task(worker.until_ready(stall=0.02))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, 0.2)
    assert (signal.SIGKILL in process.signals) is killed


async def test_a_load_that_goes_on_in_time_is_waited_for() -> None:
    process = Loading(suspended=True)
    worker = Worker(ModelSpec("/m", 512), "m", SystemClock(), cast("Any", process))
    waiting = asyncio.create_task(worker.until_ready(stall=0.2))
    await asyncio.sleep(0.1)
    process.suspended = False
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, 0.4)
    assert process.signals == []
