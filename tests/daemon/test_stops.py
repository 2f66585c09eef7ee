"""Signals to a daemon that is not there yet, and what becomes of one that hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from mlxd.daemon import stops
from mlxd.daemon.stops import Stops
from mlxd.policy.load import load
from mlxd.policy.store import PolicyStore
from tests.support.daemon import write_policies

FILES = {
    "server": "drain: {not_ready_delay: 1s, grace: 2s}\n",
    "timeouts": "shutdown: {term_grace: 4s}\n",
}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The limits that the end of this process is given; its handlers are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    given: list[float] = []
    monkeypatch.setattr(stops, "end_process_after", given.append)
    yield given
    for number, handler in before.items():
        signal.signal(number, handler)


def made(tmp_path: Path) -> Stops:
    return Stops(PolicyStore(load(write_policies(tmp_path, FILES))))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_that_came_early_is_told_later(
    tmp_path: Path, limits: list[float], number: signal.Signals
) -> None:
    heard = made(tmp_path)
    heard.hear()
    os.kill(os.getpid(), number)
    told: list[signal.Signals] = []
    heard.tell(told.append)
    assert told == [number]
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(500):
        if len(told) > 1:
            break
        await asyncio.sleep(0.01)
    assert told == [number, signal.SIGTERM]
    assert len(limits) == 2


def test_one_that_came_early_counts_once(tmp_path: Path, limits: list[float]) -> None:
    """A second one would skip every wait, that for requests included."""
    told: list[signal.Signals] = []

    async def main() -> None:
        heard = made(tmp_path)
        heard.hear()
        os.kill(os.getpid(), signal.SIGTERM)
        heard.tell(told.append)
        await asyncio.sleep(0.05)
        assert told == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(500):
            if len(told) > 1:
                break
            await asyncio.sleep(0.01)

    uvloop.run(main())
    assert told == [signal.SIGTERM] * 2
    assert len(limits) == 2


def test_the_end_is_given_its_time_and_from_a_second_signal_on_little(
    tmp_path: Path, limits: list[float]
) -> None:
    heard = made(tmp_path)
    heard.hear()
    for _ in range(4):
        os.kill(os.getpid(), signal.SIGTERM)
    whole, short = limits
    assert whole > 1 + 2 + 4 + 30
    assert 4 < short < 20
