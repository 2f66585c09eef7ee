"""What the state folder holds that is not for this version, as /health tells of it."""

from __future__ import annotations

import asyncio
import threading
from itertools import count
from pathlib import Path

import pytest

from mlxd.core import aside
from mlxd.core.clock import ManualClock
from mlxd.core.threads import Threads
from mlxd.server import unread as module
from mlxd.server.unread import Unread


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks waits for the look, on a busy machine, too."""
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60.0)


def unread_of(folder: Path, clock: ManualClock) -> Unread:
    return Unread(lambda: aside.told([folder]), Threads("test"), clock)


@pytest.mark.usefixtures("patient")
async def test_what_is_set_aside_later_is_told_until_it_is_removed(tmp_path: Path) -> None:
    clock = ManualClock()
    unread = unread_of(tmp_path, clock)
    assert unread.words == []
    (tmp_path / "bench.json").write_text("{")
    aside.set_aside(tmp_path / "bench.json", "it is damaged")
    clock.advance(2.0)
    await unread.refresh()
    (words,) = unread.words
    assert words.startswith("bench.json was set aside")
    (tmp_path / "bench.json.set-aside-1").unlink()
    clock.advance(2.0)
    await unread.refresh()
    assert unread.words == []


@pytest.mark.usefixtures("patient")
async def test_many_who_ask_have_it_looked_for_once() -> None:
    clock, looks = ManualClock(), count()
    unread = Unread(lambda: [str(next(looks))], Threads("test"), clock)
    clock.advance(2.0)
    await asyncio.gather(*(unread.refresh() for _ in range(20)))
    await unread.refresh()
    assert unread.words == ["1"], "at the start, and once since"


async def test_a_disk_that_hangs_keeps_nobody_from_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, hangs, first = ManualClock(), threading.Event(), [["at the start"]]
    unread = Unread(lambda: first.pop() if first else [str(hangs.wait(30))], Threads("t"), clock)
    clock.advance(2.0)
    await asyncio.wait_for(unread.refresh(), 20)
    assert unread.words == ["at the start"]
    hangs.set()
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 60.0)
    await unread.refresh()
    assert unread.words == ["True"]
