"""Edits are noticed however they are made, and whatever becomes of the watching."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from mlxd.policy import watch
from mlxd.policy.watch import Watcher
from tests.support.few_threads import no_threads


class Looks:
    """Counts looks, and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.count = 0
        self.fail = False
        self._next = asyncio.Event()

    async def __call__(self) -> None:
        self.count += 1
        self._next.set()
        if self.fail:
            self.fail = False
            raise ZeroDivisionError

    async def next(self, within: float = 20.0) -> None:
        """A third of the time between two looks without an event; a busy machine is slow."""
        self._next.clear()
        async with asyncio.timeout(within):
            await self._next.wait()

    async def calm(self) -> None:
        """Wait until there was none for longer than a turn: whoever listens is done with it."""
        with contextlib.suppress(TimeoutError):
            while True:
                await self.next(0.5)


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[tuple[Watcher, Looks]]:
    looks = Looks()
    watcher = Watcher(lambda: folder, looks)
    task = asyncio.create_task(watcher.run())
    try:
        await looks.next()
        await looks.next()  # now there are events, or it is known that there are none
        yield watcher, looks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def rare_rescans(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is seen soon was seen by an event."""
    monkeypatch.setattr(watch, "RESCAN_SECONDS", 60.0)
    monkeypatch.setattr(watch, "_TURN_MILLISECONDS", 200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "around" / "policies"
    folder.mkdir(parents=True)
    return folder


async def test_a_written_file_is_looked_at(folder: Path) -> None:
    async with watching(folder) as (watcher, looks):
        assert watcher.up
        (folder / "limits.yaml").write_text("x")
        await looks.next()


async def test_a_folder_that_is_removed_and_made_again_is_watched_again(folder: Path) -> None:
    async with watching(folder) as (_, looks):
        folder.rmdir()
        await looks.next()
        folder.mkdir()
        await looks.next()
        await looks.calm()
        (folder / "limits.yaml").write_text("x")
        await looks.next()


async def test_a_folder_in_whose_place_there_is_another_at_once_is_watched(folder: Path) -> None:
    """A file system may give the new one the number that the old one had."""
    async with watching(folder) as (_, looks):
        folder.rmdir()
        folder.mkdir()
        await looks.next()
        await looks.calm()
        (folder / "limits.yaml").write_text("x")
        await looks.next()


async def test_a_file_behind_a_link_is_watched_where_it_is(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "limits.yaml"
    real.parent.mkdir()
    real.write_text("x")
    (folder / "limits.yaml").symlink_to(real)
    async with watching(folder) as (_, looks):
        real.write_text("y")
        await looks.next()


async def test_events_may_write_the_folder_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As macOS does: `Policies` for `policies`, where the disk has it so."""
    (tmp_path / "Around").symlink_to(folder.parent)
    told = tmp_path / "Around" / "policies" / "limits.yaml"
    edited = threading.Event()

    def watch_(*_: object, stop_event: threading.Event, **__: object) -> Iterator[set[Any]]:
        yield set()
        while not stop_event.is_set():
            if edited.wait(0.01):
                edited.clear()
                yield {(watchfiles.Change.modified, str(told))}

    monkeypatch.setattr(watchfiles, "watch", watch_)
    async with watching(folder) as (_, looks):
        await looks.calm()
        edited.set()
        await looks.next(5.0)


async def test_neighbours_of_the_policy_folder_are_none_of_its_business(folder: Path) -> None:
    async with watching(folder) as (_, looks):
        before = looks.count
        for number in range(5):
            (folder.parent / f"other{number}").write_text("x")
        (folder / "limits.yaml").write_text("x")
        await looks.next()
        assert looks.count <= before + 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC])
async def test_without_events_the_folder_is_polled_until_there_are_some_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = watchfiles.watch

    def none_left(*paths: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(watchfiles, "watch", none_left)
    monkeypatch.setattr(watch, "REPAIR_SECONDS", 0.2)
    async with watching(folder) as (watcher, looks):
        await looks.next()  # nobody has touched anything
        assert not watcher.up
        monkeypatch.setattr(watchfiles, "watch", real)
        async with asyncio.timeout(5.0):
            while not watcher.up:
                await looks.next()


async def test_without_a_thread_for_events_the_folder_is_polled_until_there_is_one(
    folder: Path,
) -> None:
    with ExitStack() as stack:
        stack.enter_context(no_threads())
        async with watching(folder) as (watcher, looks):
            assert (watcher.up, looks.fail) == (False, False)
            stack.close()
            async with asyncio.timeout(5.0):
                while not watcher.up:
                    await looks.next()
            await looks.calm()
            (folder / "limits.yaml").touch()
            await looks.next()


async def test_watchfiles_is_not_asked_while_there_are_no_threads_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own are in Rust, and without one it aborts the process."""
    asked: list[object] = []
    real, start = watchfiles.watch, threading.Thread.start
    scarce = True

    def watching_asked(*paths: Any, **options: Any) -> Any:
        asked.append(paths)
        return real(*paths, **options)

    def started(thread: threading.Thread) -> None:
        if scarce and thread.name == "policy events, tried":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(watchfiles, "watch", watching_asked)
    monkeypatch.setattr(threading.Thread, "start", started)
    monkeypatch.setattr(watch, "REPAIR_SECONDS", 0.2)
    async with watching(folder) as (watcher, looks):
        async with asyncio.timeout(5.0):
            while watcher.up:  # until it is known better
                await looks.next()
        assert asked == []
        scarce = False
        async with asyncio.timeout(5.0):
            while not watcher.up:
                await looks.next()


async def test_where_the_system_tells_of_nothing_there_is_a_look_now_and_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system says nothing of what another machine writes."""

    def silent(*paths: Any, stop_event: threading.Event, **options: Any) -> Iterator[set[Any]]:
        while not stop_event.wait(0.05):
            yield set()

    monkeypatch.setattr(watchfiles, "watch", silent)
    monkeypatch.setattr(watch, "RESCAN_SECONDS", 0.2)
    async with watching(folder) as (watcher, looks):
        await looks.next()
        await looks.next()
        assert watcher.up


async def test_whatever_fails_in_listening_the_folder_is_still_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*paths: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(watchfiles, "watch", defect)
    monkeypatch.setattr(watch, "REPAIR_SECONDS", 0.05)
    async with watching(folder) as (watcher, looks):
        for _ in range(4):
            await looks.next()
        assert not watcher.up
    # Once, and not at each look; a listener that has just been told to stop may say it, too.
    assert 1 <= caplog.text.count("policy files are polled") < 4


async def test_a_file_linked_from_beside_the_folder_is_watched(folder: Path) -> None:
    real = folder.parent / "production.yaml"
    real.write_text("x")
    (folder / "limits.yaml").symlink_to(real)
    async with watching(folder) as (_, looks):
        real.write_text("y")
        await looks.next()


async def test_edits_are_still_looked_for_after_a_defect(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RESTART_SECONDS", 0.05)
    async with watching(folder) as (watcher, looks):
        looks.fail = True
        (folder / "limits.yaml").write_text("x")
        await looks.next()
        await looks.next()  # it began anew
        (folder / "limits.yaml").write_text("y")
        await looks.next()
        assert watcher.up
