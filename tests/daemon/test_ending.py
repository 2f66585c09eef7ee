"""The order of an end, with parts that do as they are told."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from mlxd.core.clock import SystemClock
from mlxd.core.threads import Threads
from mlxd.daemon import ending
from mlxd.daemon.ending import Ending
from mlxd.policy.load import load
from mlxd.server.parts import State
from tests.support.daemon import write_policies

LONG = 30.0


def composed(tmp_path: Path, *, grace: str = "30s", delay: str = "0s") -> Any:
    """A composition in which nothing is under way."""
    files = {"server": f"drain: {{not_ready_delay: {delay}, grace: {grace}}}\n"}
    parts = MagicMock(clock=SystemClock())
    parts.policies.current = load(write_policies(tmp_path / "policies", files))
    parts.state = State(ready=True)
    parts.admission.active = parts.dispatcher.arriving = 0
    parts.admission.draining = False
    for name in ("preloader", "puller", "reloader", "guard", "residency", "records", "usage"):
        getattr(parts, name).close = AsyncMock()
    parts.admission.idle = AsyncMock()
    made = MagicMock(parts=parts, threads=Threads("test"), temporary=tmp_path / "tmp")
    for part in (
        made.recovery, made.spares, made.webhook, made.listener, made.admin, made.forecasts,
        made.grammars,
    ):  # fmt: skip
        part.close = AsyncMock()
    made.hold.asked_to_end = AsyncMock()
    made.listener.stop_accepting = AsyncMock()
    made.listener.answering = made.listener.expecting = 0
    return made


async def test_who_goes_by_readyz_is_served_until_it_has_seen_the_end(tmp_path: Path) -> None:
    """Though nothing is under way."""
    made = composed(tmp_path, delay="1h")
    made.parts.state.probed = made.parts.clock.monotonic()
    end = Ending(made)
    draining = asyncio.create_task(end.drain(asked=True, within=LONG))
    await asyncio.sleep(0.2)
    assert not made.parts.state.ready
    assert not made.parts.admission.draining
    made.listener.stop_accepting.assert_not_awaited()
    end.hasten()
    await asyncio.wait_for(draining, LONG / 2)
    assert made.parts.admission.draining


@pytest.mark.parametrize("ago", [None, 7201.0])
async def test_where_nobody_goes_by_it_an_idle_end_waits_for_nothing(
    tmp_path: Path, ago: float | None
) -> None:
    made = composed(tmp_path, delay="1h")
    made.parts.state.probed = None if ago is None else made.parts.clock.monotonic() - ago
    await asyncio.wait_for(Ending(made).drain(asked=True, within=LONG), LONG / 2)


async def test_who_has_connected_and_not_yet_asked_has_a_second_for_it(tmp_path: Path) -> None:
    made = composed(tmp_path)
    made.listener.expecting = 1
    draining = asyncio.create_task(Ending(made).drain(asked=True, within=LONG))
    await asyncio.sleep(3 * ending._LAST_CALL_SECONDS)
    assert not made.parts.admission.draining
    made.listener.expecting = 0
    await asyncio.wait_for(draining, LONG / 2)
    assert made.parts.admission.draining


async def test_what_has_come_and_is_judged_is_let_in_first(tmp_path: Path) -> None:
    """Such as its schema, which takes longer than to ask may."""
    made = composed(tmp_path)
    made.parts.dispatcher.arriving = 1
    draining = asyncio.create_task(Ending(made).drain(asked=True, within=LONG))
    await asyncio.sleep(ending._LAST_CALL_SECONDS + 2 * ending._LOOK_SECONDS)
    assert not made.parts.admission.draining
    made.parts.dispatcher.arriving = 0
    await asyncio.wait_for(draining, LONG / 2)
    assert made.parts.admission.draining


@pytest.mark.parametrize("part", ["dispatcher", "listener"])
async def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(ending, "_JUDGED_SECONDS", 0.2)
    monkeypatch.setattr(ending, "_COMING_SECONDS", 0.2)
    made = composed(tmp_path, grace="1ms")
    made.parts.dispatcher.arriving = int(part == "dispatcher")
    made.listener.expecting = int(part == "listener")
    await asyncio.wait_for(Ending(made).drain(asked=True, within=LONG), LONG / 2)
    assert made.parts.admission.draining


async def test_who_was_connected_last_may_still_ask(tmp_path: Path) -> None:
    made = composed(tmp_path)
    closed = asyncio.Event()
    made.listener.stop_accepting = AsyncMock(side_effect=closed.set)
    draining = asyncio.create_task(Ending(made).drain(asked=True, within=LONG))
    await asyncio.wait_for(closed.wait(), LONG / 2)
    await asyncio.sleep(ending._LAST_CALL_SECONDS / 10)
    assert not made.parts.admission.draining
    await asyncio.wait_for(draining, LONG / 2)
    assert made.parts.admission.draining


async def test_an_end_waits_for_answers_that_are_still_read(tmp_path: Path) -> None:
    made = composed(tmp_path)
    made.listener.answering = 1
    told = asyncio.Event()
    made.parts.events.close.side_effect = told.set  # who follows is not waited for
    draining = asyncio.create_task(Ending(made).drain(asked=True, within=LONG))
    await asyncio.wait_for(told.wait(), LONG / 2)
    await asyncio.sleep(0.3)
    assert not draining.done()
    made.watchdog.stop.assert_called_once_with()
    made.systemd.stopping.assert_called_once_with(LONG)
    made.listener.answering = 0
    await asyncio.wait_for(draining, LONG / 2)


async def test_no_longer_than_its_grace(tmp_path: Path) -> None:
    made = composed(tmp_path, grace="300ms")
    made.listener.answering = 1
    await asyncio.wait_for(Ending(made).drain(asked=True, within=LONG), LONG / 2)


async def test_nor_once_it_is_told_again(tmp_path: Path) -> None:
    made = composed(tmp_path)
    made.listener.answering = 1
    end = Ending(made)
    draining = asyncio.create_task(end.drain(asked=True, within=LONG))
    await asyncio.sleep(0.1)
    end.hasten()
    await asyncio.wait_for(draining, LONG / 2)


async def test_a_drain_does_not_wait_for_spares_to_be_gone(tmp_path: Path) -> None:
    made = composed(tmp_path)
    made.spares.close = AsyncMock(side_effect=asyncio.Event().wait)
    await asyncio.wait_for(Ending(made).drain(asked=True, within=LONG), LONG / 2)
    made.spares.end.assert_called_with()


async def test_spares_are_waited_for_once_no_load_can_give_one_up(tmp_path: Path) -> None:
    made = composed(tmp_path)
    order: list[str] = []
    made.parts.residency.close = AsyncMock(side_effect=lambda grace: order.append("loads"))
    made.spares.close = AsyncMock(side_effect=lambda: order.append("spares"))
    await asyncio.wait_for(Ending(made).end([]), LONG / 2)
    assert order == ["loads", "spares"]


async def test_a_second_signal_hastens_an_eviction_too(tmp_path: Path) -> None:
    """It goes on while the guard closes."""
    made = composed(tmp_path)
    killed = asyncio.Event()
    made.parts.supervisor.kill_all = killed.set
    made.parts.guard.close = killed.wait
    end = Ending(made)
    ended = asyncio.create_task(end.end([]))
    await asyncio.sleep(0.1)
    assert not ended.done()
    end.hasten()
    await asyncio.wait_for(ended, LONG / 2)


async def test_a_disk_that_hangs_does_not_hold_up_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(ending, "_TIDY_SECONDS", 0.2)
    hanging = SimpleNamespace(rmtree=lambda *_, **__: back.wait(LONG))
    monkeypatch.setattr(ending, "shutil", hanging)
    began = time.monotonic()
    try:
        await Ending(composed(tmp_path)).end([])
    finally:
        back.set()
    assert time.monotonic() - began < LONG / 2


async def test_nor_does_a_system_without_a_thread_for_it_cut_it_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made = composed(tmp_path)
    monkeypatch.setattr(threading.Thread, "start", start)
    await Ending(made).end([])
    made.parts.records.close.assert_awaited_once_with()
