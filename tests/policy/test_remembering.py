"""Generations that the disk does not take are kept once it does."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.core.clock import ManualClock
from mlxd.core.threads import Threads
from mlxd.policy import remembering as module
from mlxd.policy.history import KEPT, Generation, History
from mlxd.policy.remembering import AGAIN_SECONDS, Remembering
from tests.policy.conftest import Ground, slots


def generation(number: int, digest: str = "d") -> Generation:
    return Generation(number, "/etc/mlxd", {"a.yaml": b"a"}, digest, 1.0, "watch", "uid 0")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Its disk takes nothing until `mend`."""
    (tmp_path / "state").write_text("in the way")
    return History(tmp_path / "state" / "lkg")


def mend(history: History) -> None:
    history.folder.parent.unlink()


@pytest.fixture
def remembering(history: History, clock: ManualClock) -> Remembering:
    return Remembering(history, clock, Threads("policies"))


async def test_what_could_not_be_kept_is_kept_once_it_can_be(
    remembering: Remembering, history: History, clock: ManualClock
) -> None:
    for number in range(1, KEPT + 3):
        await remembering.remember(generation(number, str(number)))
    assert remembering.failure == f"generation {KEPT + 2} could not be kept: Not a directory"
    mend(history)
    await remembering.try_again()
    assert remembering.failure, "it is not tried at every look"
    clock.advance(AGAIN_SECONDS)
    await remembering.try_again()
    assert not remembering.failure
    assert history.numbers() == list(range(3, KEPT + 3))


async def test_a_failure_is_logged_once(
    remembering: Remembering, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    await remembering.remember(generation(1))
    for _ in range(3):
        clock.advance(AGAIN_SECONDS)
        await remembering.try_again()
    assert len(caplog.records) == 1


async def test_how_a_generation_came_is_not_forgotten_while_it_waits(
    remembering: Remembering, history: History
) -> None:
    await remembering.remember(generation(2))
    again = replace(generation(2), by="", trigger="admin", contents={"a.yaml": b"b"})
    mend(history)
    await remembering.remember(again)
    kept = history.get(2)
    assert kept is not None
    assert (kept.by, kept.trigger, kept.contents) == ("uid 0", "watch", {"a.yaml": b"b"})


async def test_what_is_in_the_way_of_one_keeps_no_other_back(
    remembering: Remembering, history: History, clock: ManualClock
) -> None:
    mend(history)
    (history.folder / "00000001.json").mkdir(parents=True)
    await remembering.remember(generation(1))
    await remembering.remember(generation(2))
    assert "generation 1 could not be kept" in remembering.failure
    assert history.get(2) is not None


async def test_a_disk_that_hangs_holds_one_thread(
    remembering: Remembering, history: History, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = history.record

    def hangs(one: Generation) -> None:
        release.wait()
        real(one)

    mend(history)
    monkeypatch.setattr(module, "_LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(history, "record", hangs)
    await remembering.remember(generation(1))
    threads = threading.active_count()
    for _ in range(3):
        clock.advance(AGAIN_SECONDS)
        await remembering.try_again()
    assert "does not answer" in remembering.failure
    assert threading.active_count() == threads
    monkeypatch.setattr(module, "_LONGEST_SECONDS", 10.0)
    release.set()
    await remembering.remember(generation(2))
    while remembering.failure:  # the thread that hung comes to its end
        await asyncio.sleep(0)
        clock.advance(AGAIN_SECONDS)
        await remembering.try_again()
    assert history.numbers() == [1, 2]


async def test_the_watcher_has_it_tried_again(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    in_the_way = ground.history.folder.parent
    in_the_way.write_text("in the way")
    ground.write(limits=slots(8))
    reloader = ground.start()
    await reloader.begin()
    assert reloader.history_failure
    in_the_way.unlink()
    assert await reloader.look() is None
    assert not reloader.history_failure
    assert ground.history.numbers() == [ground.current.generation]
