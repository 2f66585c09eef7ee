"""Crashes are on the disk: each once, the newest kept, a broken line in nobody's way."""

from __future__ import annotations

import asyncio
import errno
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxd.core import durable
from mlxd.core.clock import ManualClock
from mlxd.telemetry import crashes
from mlxd.telemetry.crashes import FILE, KEPT, Crashes, read
from mlxd.telemetry.events import Events

DOWN: dict[str, Any] = {
    "model": "m", "pid": 7, "reason": "SIGSEGV", "status": -11, "running": 2, "step": 12,
    "memory": 2**30, "stderr": "line one\nline two",
}  # fmt: skip


class Bench:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.events = Events(ManualClock(), 1_000_000)
        self.crashes = Crashes(state, self.events)

    def crash(self, **more: Any) -> None:
        self.events.record("worker_down", "the worker of m ended", DOWN | more)

    async def end(self) -> list[dict[str, Any]]:
        self.events.close()
        await self.crashes.close()
        return read(self.state)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not fact():  # noqa: ASYNC110 - what is on the disk tells nobody
            await asyncio.sleep(0.005)


async def test_every_end_that_nobody_asked_for_is_written_down(bench: Bench) -> None:
    bench.events.record("unclean_end", "the last run ended", {"pid": 3, "at": 5.0})
    bench.crashes.start()
    bench.crash()
    bench.crash(reason="stopped")
    bench.events.record("load", "no crash")
    daemon, worker = await bench.end()
    assert daemon == {
        "schema": 1, "kind": "daemon", "event": 1_000_001, "message": "the last run ended",
        "at": 5.0, "pid": 3,
    }  # fmt: skip
    assert worker == DOWN | {
        "schema": 1, "kind": "worker", "event": 1_000_002, "message": "the worker of m ended",
        "at": ManualClock().wall(),
    }  # fmt: skip
    assert stat.S_IMODE((bench.state / FILE).stat().st_mode) == 0o600


async def test_those_of_earlier_runs_stay(bench: Bench) -> None:
    for step in (1, 2):
        again = Bench(bench.state)
        again.crashes.start()
        again.crash(step=step)
        await again.end()
    assert [one["step"] for one in read(bench.state)] == [1, 2]


async def test_the_newest_are_kept_and_the_file_stays_small(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashes, "_LAST_SECONDS", 60.0)
    bench.crashes.start()
    for step in range(3 * KEPT):
        bench.crash(step=step)
    found = await bench.end()
    assert [one["step"] for one in found] == list(range(2 * KEPT, 3 * KEPT))
    assert len((bench.state / FILE).read_text().split("\n\n")) <= 2 * KEPT + 1


def test_over_many_runs_the_file_stays_small_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_sync", lambda _: None)
    monkeypatch.setattr(durable, "sync_folder", lambda _: None)
    file = tmp_path / FILE
    for run in range(8):
        lines: int | None = None
        for step in range(KEPT - 20):
            lines = crashes._add(file, {"schema": 1, "at": run, "message": str(step)}, lines)
            assert lines <= 2 * KEPT
    assert file.read_bytes().count(b'"at"') <= 2 * KEPT
    assert [one["message"] for one in read(tmp_path)][-1] == str(KEPT - 21)
    assert len(read(tmp_path)) == KEPT


def test_lines_that_say_nothing_fill_no_disk_either(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_bytes(b"{}\n" * 5000)
    crashes._add(file, {"schema": 1, "at": 1.0, "message": "new"}, None)
    assert file.stat().st_size < 100


def test_of_a_file_that_is_too_large_the_newest_are_read_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crashes, "_MOST_BYTES", 5000)
    file = tmp_path / FILE
    durable.append(file, json.dumps({"schema": 1, "at": 1, "message": "x" * 90_000}).encode())
    durable.append(file, json.dumps({"schema": 1, "at": 2, "message": "late"}).encode())
    assert [one["message"] for one in read(tmp_path)] == ["late"]
    crashes._add(file, {"schema": 1, "at": 3.0, "message": "new"}, None)
    assert [one["message"] for one in read(tmp_path)] == ["late", "new"]
    assert file.stat().st_size < 5000


async def test_a_writer_that_ends_by_a_defect_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(crashes, "_add", broken)
    bench.crashes.start()
    bench.crash()
    await until(lambda: "the crash records has ended: a defect" in caplog.text)


@pytest.mark.parametrize(
    "broken",
    [b'{"schema": 1, "at": 1, "mess', b"[]", b"\xff\xfe", b'{"schema": 99, "at": 1}', b"[" * 9999,
     b'{"schema": 1, "at": "x", "message": "m"}', b'{"schema": 1, "at": 1, "message": 5}'],
)  # fmt: skip
async def test_a_broken_line_spoils_no_other(bench: Bench, broken: bytes) -> None:
    (bench.state / FILE).write_bytes(json.dumps({"schema": 1, "at": 1, "message": "old"}).encode())
    with (bench.state / FILE).open("ab") as stream:
        stream.write(b"\n" + broken)
    bench.crashes.start()
    bench.crash()
    assert [one["message"] for one in await bench.end()] == ["old", "the worker of m ended"]


async def test_a_full_disk_is_one_warning_and_forgotten_once_it_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.crashes.start()
    with monkeypatch.context() as broken:
        broken.setattr(durable, "append", _full)
        bench.crash(step=1)
        bench.crash(step=2)
        await until(lambda: bench.crashes.failure)
        assert bench.crashes.failure == "crashes cannot be written down: No space left on device"
        await asyncio.sleep(0.05)
    bench.crash(step=3)
    await until(lambda: not bench.crashes.failure)
    assert [r for r in caplog.records if r.name == "mlxd.telemetry.crashes"][1:] == []
    assert [one["step"] for one in await bench.end()] == [1, 2, 3]


async def test_what_a_full_disk_did_not_take_is_written_once_it_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing crashes any more."""
    monkeypatch.setattr(crashes, "AGAIN_SECONDS", 0.05)
    bench.crashes.start()
    with monkeypatch.context() as broken:
        broken.setattr(durable, "append", _full)
        bench.crash(step=1)
        bench.crash(step=2)
        await until(lambda: bench.crashes.failure)
    await until(lambda: [one["step"] for one in read(bench.state)] == [1, 2])
    await until(lambda: not bench.crashes.failure)
    assert len(await bench.end()) == 2


def _full(file: Path, line: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_without_a_file_there_are_none(tmp_path: Path) -> None:
    assert read(tmp_path) == []


async def test_of_what_no_disk_takes_the_newest_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "append", _full)
    bench.crashes.start()
    for step in range(KEPT + 5):
        bench.crash(step=step)
        await asyncio.sleep(0)
    newest = list(range(5, KEPT + 5))
    await until(lambda: [one["step"] for one in bench.crashes._unwritten] == newest)
    await bench.end()
