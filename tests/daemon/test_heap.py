"""What the daemon asks of its C library."""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
from contextlib import suppress
from typing import Any

import pytest

from mlxd.core.threads import Threads
from mlxd.daemon import heap


class Library:
    """As much of glibc as is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.enough = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def mallopt(self, what: int, value: int) -> int:
        self.asked.append(("arenas" if what == -8 else "?", value))
        return 1

    def malloc_trim(self, kept: int) -> int:
        self.asked.append(("trim", kept))
        if len(self.asked) == 3:
            self._loop.call_soon_threadsafe(self.enough.set)
        return 1


async def test_arenas_are_few_and_free_pages_are_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(heap, "TRIM_SECONDS", 0.001)
    keeping = asyncio.create_task(heap.keep_small(Threads("heap")))
    await asyncio.wait_for(library.enough.wait(), 5)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping
    assert library.asked[:3] == [("arenas", 2), ("trim", 0), ("trim", 0)]


async def test_want_of_a_thread_once_does_not_end_that(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(heap, "TRIM_SECONDS", 0.001)
    start, refused = threading.Thread.start, list[threading.Thread]()

    def start_later(thread: threading.Thread) -> None:
        if refused:
            start(thread)
        else:
            refused.append(thread)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start_later)
    keeping = asyncio.create_task(heap.keep_small(Threads("heap")))
    await asyncio.wait_for(library.enough.wait(), 5)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping
    assert refused


async def test_what_else_goes_wrong_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Library):
        def malloc_trim(self, kept: int) -> int:
            raise OSError("the library is broken")

    library = Broken()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(heap, "TRIM_SECONDS", 0.001)
    with pytest.raises(OSError, match="the library is broken"):
        await asyncio.wait_for(heap.keep_small(Threads("heap")), 5)


async def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = object()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: other)
    await asyncio.wait_for(heap.keep_small(Threads("heap")), 5)
