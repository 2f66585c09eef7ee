"""When a write is over: half a file is never taken for a whole one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from mlxd.core.clock import Clock
from mlxd.policy.files import PolicyFiles, read
from mlxd.policy.settle import (
    PATIENCE_SECONDS,
    VANISHED_SECONDS,
    observe,
    open_for_writing,
    settled,
)
from tests.support.virtual_time import VirtualLoop

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who writes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "limits.yaml").write_text("one")
    return tmp_path


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


async def settle_on(
    folder: Path, before: PolicyFiles, clock: Clock, quiet: float = 0.05
) -> dict[str, bytes]:
    async def reading(names: Collection[str]) -> tuple[bool, PolicyFiles]:
        return observe(folder, names)

    return dict((await settled(reading, before, clock, quiet=quiet)).contents)


@linux
def test_a_file_that_somebody_writes_is_seen_to_be_written(folder: Path) -> None:
    file = folder / "limits.yaml"
    assert not open_for_writing(file)
    with file.open("r"):
        assert not open_for_writing(file)
    with file.open("a"):
        assert open_for_writing(file)
    assert not open_for_writing(file)
    assert not open_for_writing(folder / "gone")


@linux
def test_asking_never_ends_this_process(folder: Path) -> None:
    """A writer that comes while the lease is held has the kernel signal us, usually to death."""
    file = folder / "limits.yaml"
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with file.open("a"):
                pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3000):
            open_for_writing(file)
    finally:
        stop.set()
        writer.join()
    assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL


@linux
def test_an_open_file_is_waited_for(folder: Path, loop: VirtualLoop) -> None:
    before = read(folder)
    with (folder / "limits.yaml").open("w") as stream:
        stream.write("half")
        stream.flush()
        waiting = loop.create_task(settle_on(folder, before, loop))
        loop.advance(PATIENCE_SECONDS - 0.1)
        assert not waiting.done()
        stream.write(" and half")
    assert loop.run(waiting) == {"limits.yaml": b"half and half"}


@linux
def test_a_writer_that_never_closes_is_not_waited_for_for_ever(
    folder: Path, loop: VirtualLoop
) -> None:
    before = read(folder)
    with (folder / "limits.yaml").open("w") as stream:
        stream.write("all of it")
        stream.flush()
        waiting = loop.create_task(settle_on(folder, before, loop))
        loop.advance(PATIENCE_SECONDS + 0.1)
        assert waiting.done()
    assert waiting.result() == {"limits.yaml": b"all of it"}


def test_a_vanished_file_has_time_to_come_back(folder: Path, loop: VirtualLoop) -> None:
    before = read(folder)
    file = folder / "limits.yaml"
    file.unlink()
    waiting = loop.create_task(settle_on(folder, before, loop))
    loop.advance(VANISHED_SECONDS - 0.1)
    assert not waiting.done()
    file.write_text("two")
    assert loop.run(waiting) == {"limits.yaml": b"two"}


def test_a_file_that_stays_away_is_deleted(folder: Path, loop: VirtualLoop) -> None:
    before = read(folder)
    (folder / "limits.yaml").unlink()
    waiting = loop.create_task(settle_on(folder, before, loop))
    loop.advance(VANISHED_SECONDS + 0.1)
    assert waiting.done()
    assert waiting.result() == {}


def test_a_file_that_vanishes_late_has_as_much_time_to_come_back(
    folder: Path, loop: VirtualLoop
) -> None:
    before, file = read(folder), folder / "limits.yaml"
    waiting = loop.create_task(settle_on(folder, before, loop))
    for number in range(60):
        file.write_text(f"restless {number}")
        loop.advance(0.03)
    file.unlink()
    loop.advance(VANISHED_SECONDS - 0.1)
    assert not waiting.done()
    file.write_text("two")
    assert loop.run(waiting) == {"limits.yaml": b"two"}


def test_without_leases_a_pause_ends_a_write(
    folder: Path, loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS: pieces that come faster than the quiet period are one write."""
    monkeypatch.setattr("sys.platform", "darwin")
    before = read(folder)
    descriptor = os.open(folder / "limits.yaml", os.O_WRONLY | os.O_TRUNC)
    waiting = loop.create_task(settle_on(folder, before, loop, quiet=0.3))
    for _ in range(4):
        os.write(descriptor, b"x")
        loop.advance(0.25)
        assert not waiting.done()
    os.close(descriptor)
    assert loop.run(waiting) == {"limits.yaml": b"xxxx"}
