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
from tests.support.daemon import write_policies

LONG = 30.0


def composed(tmp_path: Path, *, grace: str = "30s") -> Any:
    """A composition in which nothing is under way."""
    files = {"server": f"drain: {{not_ready_delay: 0s, grace: {grace}}}\n"}
    parts = MagicMock(clock=SystemClock())
    parts.policies.current = load(write_policies(tmp_path / "policies", files))
    parts.admission.active = 0
    for name in ("preloader", "puller", "reloader", "guard", "residency", "records"):
        getattr(parts, name).close = AsyncMock()
    parts.admission.idle = AsyncMock()
    made = MagicMock(parts=parts, threads=Threads("test"), temporary=tmp_path / "tmp")
    for part in (made.recovery, made.webhook, made.listener, made.admin, made.forecasts):
        part.close = AsyncMock()
    made.hold.asked_to_end = AsyncMock()
    made.listener.stop_accepting = AsyncMock()
    made.listener.answering = made.listener.expecting = 0
    return made


async def test_an_end_waits_for_answers_that_are_still_read(tmp_path: Path) -> None:
    made = composed(tmp_path)
    made.listener.answering = 1
    draining = asyncio.create_task(Ending(made).drain(asked=True, within=LONG))
    await asyncio.sleep(0.3)
    assert not draining.done()
    made.parts.events.close.assert_called_once_with()  # who follows is not waited for
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
