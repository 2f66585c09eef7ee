"""The flight record: what a run leaves behind, and what the next one makes of it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlxd.core import durable
from mlxd.core.clock import ManualClock
from mlxd.telemetry import flight
from mlxd.telemetry.events import RUN_IDS
from mlxd.telemetry.flight import FILE, Flight, last_run


@dataclass
class Memory:
    active: int = 3 * 2**30
    cache: int = 2**30
    peak: int = 5 * 2**30


@dataclass
class Worker:
    name: str = "tiny"
    pid: int = 77
    ready: object | None = "ready"
    running: int = 0
    longest: int = 0
    step: int = 0
    memory: Memory = field(default_factory=Memory)


class Bench:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.workers: list[Worker] = []
        self.clock = ManualClock()
        self.writes: list[dict[str, Any]] = []
        self.flight = Flight(
            state, self.clock, lambda: self.workers, about={"mlxd": "1", "events": 5 * RUN_IDS},
            available=lambda: 1000,
        )  # fmt: skip

    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / FILE).read_text())
        return found

    async def until(self, fact: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not fact():  # noqa: ASYNC110 - what is on the disk tells nobody
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    monkeypatch.setattr(flight, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(flight, "_SECONDS", 0.02)
    really = durable.write

    def write(file: Path, content: bytes) -> None:
        really(file, content)
        bench.writes.append(json.loads(content))

    monkeypatch.setattr(durable, "write", write)
    yield bench
    await bench.flight.close()


async def test_it_says_what_runs_as_it_begins_goes_on_and_ends(bench: Bench) -> None:
    bench.flight.start()
    await bench.until(lambda: len(bench.writes) == 1)
    bench.workers = [Worker(ready=None)]
    bench.flight.changed()
    await bench.until(lambda: bench.writes[-1]["workers"])
    assert bench.written()["workers"][0]["state"] == "loading"
    bench.workers = [Worker(running=2, step=9)]
    bench.flight.changed()
    await bench.until(lambda: bench.writes[-1]["workers"][0]["state"] == "generating")
    bench.workers[0].step = 10
    await bench.until(lambda: bench.writes[-1]["workers"][0]["step"] == 10)
    assert bench.written() == {
        "schema": 1, "ended": None, "at": bench.clock.wall(), "pid": os.getpid(), "mlxd": "1",
        "events": 5 * RUN_IDS, "available": 1000,
        "workers": [
            {"model": "tiny", "pid": 77, "state": "generating", "running": 2, "tokens": 0,
             "step": 10, "memory": 4 * 2**30, "peak": 5 * 2**30}
        ],
    }  # fmt: skip
    bench.workers[0].running = 0
    bench.flight.changed()
    await bench.until(lambda: bench.writes[-1]["workers"][0]["state"] == "idle")


async def test_nothing_is_written_while_nothing_runs(bench: Bench) -> None:
    bench.workers = [Worker()]
    bench.flight.start()
    await bench.until(lambda: bench.writes)
    await asyncio.sleep(0.3)
    assert len(bench.writes) == 1


async def test_however_much_begins_and_ends_it_is_written_at_a_measured_pace(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "_PAUSE_SECONDS", 0.2)
    bench.workers = [Worker(running=1)]
    began = time.monotonic()
    bench.flight.start()
    for _ in range(100):
        bench.flight.changed()
        await asyncio.sleep(0.005)
    await bench.until(lambda: len(bench.writes) > 1)
    assert len(bench.writes) <= 2 + (time.monotonic() - began) / 0.2


async def test_a_full_disk_is_one_warning_and_forgotten_once_it_is_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []
    really = durable.write

    def full(file: Path, content: bytes) -> None:
        attempts.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    bench.workers = [Worker(running=1)]
    bench.flight.start()
    await bench.until(lambda: len(attempts) > 3)
    assert bench.flight.failure == "the flight record cannot be written: No space left on device"
    assert len(caplog.records) == 1
    monkeypatch.setattr(durable, "write", really)
    await bench.until(lambda: not bench.flight.failure)


class TestLastRun:
    async def test_a_proper_stop_is_nothing_to_tell(self, bench: Bench) -> None:
        bench.flight.start()
        bench.workers = [Worker(running=1)]
        await bench.flight.close()
        assert bench.written()["ended"] == "clean"
        assert not last_run(bench.state).unclean

    async def test_a_run_that_was_cut_off_says_what_it_did(self, bench: Bench) -> None:
        bench.workers = [
            Worker(running=2, longest=5170, step=340), Worker("other", ready=None), Worker("third"),
        ]  # fmt: skip
        bench.flight.start()
        await bench.until(lambda: bench.writes)
        last = last_run(bench.state)
        assert last.unclean
        assert last.message == (
            "the last run ended while tiny generated for 2 requests (up to 5170 tokens, 4 GiB held,"
            " last step 340) and other was loading, at 2023-11-14T22:30:00Z"
        )
        assert last.data["workers"][0]["step"] == 340
        assert last.ids_after(ManualClock()) >= 6 * RUN_IDS

    async def test_an_idle_one_too(self, bench: Bench) -> None:
        bench.flight.start()
        await bench.until(lambda: bench.writes)
        assert last_run(bench.state).message == (
            "the last run was not stopped properly; it last began or ended work at"
            " 2023-11-14T22:30:00Z"
        )

    async def test_a_defect_that_ends_the_record_is_told(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(file: Path, content: bytes) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(durable, "write", broken)
        bench.flight.start()
        await bench.until(lambda: "the flight record has ended: a defect" in caplog.text)

    def test_without_a_record_there_is_nothing_to_tell(self, tmp_path: Path) -> None:
        last = last_run(tmp_path)
        assert not last.unclean
        assert last.ids_after(ManualClock()) == 1_700_001_000 * RUN_IDS

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "3", '{"schema": 2}', '{"schema": 1, "at": 1, "events": 0}', "[" * 99_999,
         '{"schema": 1, "ended": null, "at": 1e999, "events": 0, "workers": []}',
         '{"schema": 1, "ended": null, "at": 1e15, "events": 0, "workers": []}',
         '{"schema": 1, "ended": null, "at": 1, "events": "x", "workers": []}',
         '{"schema": 1, "ended": null, "at": 1, "events": 0, "workers": [{"model": "m"}]}'],
    )  # fmt: skip
    def test_a_damaged_record_is_set_aside_and_stops_nothing(
        self, tmp_path: Path, text: str
    ) -> None:
        (tmp_path / FILE).write_text(text)
        last = last_run(tmp_path)
        assert not last.unclean
        assert last.ids_after(ManualClock()) > 0
        (lies_aside,) = tmp_path.iterdir()
        assert lies_aside.read_text() == text
