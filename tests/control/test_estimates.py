"""What is learned from earlier runs, and kept."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mlxd.control.estimates import (
    FILE,
    MOST_MODELS,
    MOST_OBSERVATIONS,
    Estimate,
    Estimates,
    Observation,
    learned,
    loaded,
)
from mlxd.core import durable
from mlxd.core.clock import ManualClock
from mlxd.core.footprint import Footprint, LayerGroup, Moment

GIB = 2**30


def taught(
    factor: float, count: int = 20, *, weights: int = 0, beside: bool = False, noise: float = 0.0
) -> Estimate:
    """An estimate whose predictions were wrong by a factor: of the whole, or beside weights."""
    draw = random.Random(1)
    estimate = Estimate(used=0.0, weights_bytes=weights)
    for _ in range(count):
        predicted = weights + draw.randint(GIB // 4, 4 * GIB)
        whole = weights + (predicted - weights) * factor if beside else predicted * factor
        measured = int(whole * (1 + draw.uniform(-noise, noise)))
        estimate = learned(estimate, predicted, measured)
    return estimate


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0, 1.4, 2.0])
def test_a_wrong_factor_is_right_after_twenty_observations(factor: float) -> None:
    estimate = taught(factor, noise=0.05)
    for predicted in (GIB // 3, GIB, 6 * GIB):
        assert estimate.expected(predicted) == pytest.approx(predicted * factor, rel=0.1)
        assert estimate.upper(predicted) == pytest.approx(predicted * factor, rel=0.1)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_factor_that_leaves_the_weights_alone_is_found(factor: float) -> None:
    weights = 8 * GIB
    estimate = taught(factor, weights=weights, beside=True, noise=0.005)
    for beside in (GIB, 20 * GIB):
        told = estimate.expected(weights + beside)
        assert told == pytest.approx(weights + beside * factor, rel=0.1)


def test_room_is_made_for_what_is_hardly_exceeded() -> None:
    estimate = taught(1.0, 30, noise=0.2)
    assert estimate.upper(GIB) > estimate.expected(GIB)
    assert estimate.upper(GIB) < 1.25 * GIB


def test_nothing_observed_corrects_nothing() -> None:
    assert Estimate(used=0.0).upper(GIB) == GIB
    assert Estimate(used=0.0).error_percent is None


def test_one_observation_raises_a_prediction_but_does_not_lower_it() -> None:
    assert taught(2.0, 1).upper(GIB) == 2 * GIB
    assert taught(0.5, 1).upper(GIB) == GIB


def test_an_absurd_observation_is_bounded() -> None:
    assert taught(1000.0, 1).upper(GIB) == 4 * GIB


def test_the_mean_error_is_of_what_was_said_then() -> None:
    estimate = learned(Estimate(used=0.0), GIB, 2 * GIB)
    assert estimate.error_percent == pytest.approx(50)
    estimate = learned(estimate, GIB, 2 * GIB)
    assert estimate.error_percent == pytest.approx(25)


def test_only_the_last_observations_count() -> None:
    estimate = taught(2.0, 100)
    assert (len(estimate.observations), estimate.count) == (MOST_OBSERVATIONS, 100)


def test_loads_are_learned_apart() -> None:
    estimate = loaded(Estimate(used=0.0), GIB, 3 * GIB)
    assert estimate.upper_load(GIB) == 3 * GIB
    assert estimate.upper(GIB) == GIB


async def test_what_is_learned_outlives_the_daemon(tmp_path: Path) -> None:
    footprint = Footprint(7, (LayerGroup(2, 3),), prefill=(Moment(token=4),))
    estimates = Estimates(tmp_path, ManualClock())
    estimates.put("a", learned(Estimate(used=0.0, footprint=footprint), GIB, 2 * GIB))
    await estimates.saved()
    again = Estimates(tmp_path, ManualClock()).get("a")
    assert again is not None
    assert again.footprint == footprint
    assert again.upper(GIB) == 2 * GIB


async def test_many_changes_are_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    monkeypatch.setattr("mlxd.core.durable.write", lambda path, content: writes.append(content))
    estimates = Estimates(tmp_path, ManualClock())
    for n in range(100):
        estimates.put(f"model {n}", Estimate(used=0.0))
    await estimates.saved()
    assert len(writes) == 1
    assert b"model 99" in writes[-1]


async def _until(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not found():  # noqa: ASYNC110  # a thread writes
            await asyncio.sleep(0.01)


async def test_what_busy_times_teach_is_written_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    monkeypatch.setattr("mlxd.core.durable.write", lambda path, content: writes.append(content))
    estimates = Estimates(tmp_path, ManualClock())
    estimates.put("a", Estimate(used=0.0))
    await estimates.saved()
    for _ in range(3):
        estimates.put("b", Estimate(used=0.0))
        await asyncio.sleep(0.01)
    assert len(writes) == 1
    estimates.put("c", Estimate(used=0.0), now=True)
    await _until(lambda: len(writes) == 2)
    assert b'"b"' in writes[-1]
    estimates.put("d", Estimate(used=0.0))
    await estimates.close()
    assert b'"d"' in writes[-1]


async def test_what_waited_is_written_once_it_has_rested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxd.control.estimates._APART_S", 0.02)
    estimates = Estimates(tmp_path, ManualClock())
    for name in "ab":
        estimates.put(name, Estimate(used=0.0))
        if name == "a":
            await estimates.saved()
    await _until(lambda: b'"b"' in (tmp_path / FILE).read_bytes())


async def test_what_hurries_during_a_write_is_written_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go = threading.Event(), threading.Event()
    writes: list[bytes] = []

    def write(path: Path, content: bytes) -> None:
        writing.set()
        go.wait(5)
        writes.append(content)

    monkeypatch.setattr("mlxd.core.durable.write", write)
    estimates = Estimates(tmp_path, ManualClock())
    estimates.put("a", Estimate(used=0.0))
    await asyncio.to_thread(writing.wait, 5)
    estimates.put("b", Estimate(used=0.0), now=True)
    go.set()
    await _until(lambda: len(writes) == 2)
    assert b'"b"' in writes[-1]


async def test_the_longest_unused_are_forgotten(tmp_path: Path) -> None:
    clock = ManualClock()
    estimates = Estimates(tmp_path, clock)
    for n in range(MOST_MODELS + 1):
        clock.advance(1)
        estimates.put(str(n), Estimate(used=0.0))
        if n == MOST_MODELS - 1:
            estimates.put("0", Estimate(used=0.0))
    assert estimates.get("0") is not None
    assert estimates.get("1") is None
    assert estimates.get(str(MOST_MODELS)) is not None
    await estimates.saved()


async def test_a_wall_clock_that_is_set_back_makes_nobody_forgotten(tmp_path: Path) -> None:
    clock = ManualClock()
    estimates = Estimates(tmp_path, clock)
    for n in range(MOST_MODELS):
        estimates.put(str(n), Estimate(used=0.0))
    clock.epoch -= 24 * 3600
    estimates.put("new", Estimate(used=0.0))
    assert estimates.get("new") is not None
    assert estimates.get("0") is None
    await estimates.saved()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 2, "models": {}}', b'{"schema": "1"}',
        b'{"schema": 1, "models": {"a": {"used": "yes"}}}', b"[" * 100_000,
        b'{"schema": 1, "models": {"\xff": {"used": 1.0}}}',
    ],
)  # fmt: skip
async def test_a_file_that_is_not_understood_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    estimates = Estimates(tmp_path, ManualClock())
    assert estimates.get("a") is None
    (lies_aside,) = tmp_path.glob(f"{FILE}.set-aside-*")
    assert lies_aside.read_bytes() == content
    estimates.put("a", Estimate(used=0.0))
    await estimates.saved()
    assert Estimates(tmp_path, ManualClock()).get("a") is not None


def stored(folder: Path, estimate: Estimate) -> Estimate:
    """As it is read again from a file that somebody has written."""
    told = {"schema": 1, "models": {"a": estimate}}
    (folder / FILE).write_bytes(msgspec.json.encode(told))
    found = Estimates(folder, ManualClock()).get("a")
    assert found is not None
    return found


@pytest.mark.parametrize("wrong", [0, -1, 2**48, 2**62])
@pytest.mark.parametrize("place", range(3))
def test_an_observation_that_nobody_can_have_made_is_dropped(
    tmp_path: Path, wrong: int, place: int
) -> None:
    good = Observation(GIB, 2 * GIB, GIB)
    numbers = [GIB, GIB, GIB]
    numbers[place] = wrong
    both = [Observation(*numbers), good]
    found = stored(tmp_path, Estimate(used=0.0, weights_bytes=wrong, observations=both, loads=both))
    assert (found.observations, found.loads) == ([good], [good])
    assert found.upper(GIB) == found.upper_load(GIB) == 2 * GIB
    assert found.error_percent == pytest.approx(50)


@pytest.mark.parametrize(
    "footprint",
    [
        Footprint(0, ()),
        Footprint(-5, ()),
        Footprint(2**62, ()),
        Footprint(GIB, (LayerGroup(-1, 5),)),
        Footprint(GIB, (LayerGroup(2**47, 2**47),)),
        Footprint(GIB, (), decode=(Moment(token=-7),)),
        Footprint(GIB, (), prefill=(Moment(pair=2**47),)),
        Footprint(GIB, (), work_bytes=-1),
        Footprint(GIB, (), decode=(Moment(),) * 2000),
    ],
    ids=str,
)
def test_a_footprint_that_no_model_has_is_dropped(tmp_path: Path, footprint: Footprint) -> None:
    assert stored(tmp_path, Estimate(used=0.0, footprint=footprint)).footprint is None


async def test_a_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = threading.Event()
    monkeypatch.setattr("mlxd.core.durable.write", lambda *_: shut.wait(30))
    monkeypatch.setattr("mlxd.control.estimates._PATIENCE_S", 0.01)
    estimates = Estimates(tmp_path, ManualClock())
    estimates.put("a", Estimate(used=0.0))
    await asyncio.wait_for(estimates.close(), 5)
    shut.set()
    await estimates.saved()


async def test_what_is_learned_last_is_written_at_the_end(tmp_path: Path) -> None:
    estimates = Estimates(tmp_path, ManualClock())
    estimates.put("a", Estimate(used=0.0))
    await estimates.close()
    assert b'"a"' in (tmp_path / FILE).read_bytes()


async def test_a_disk_that_refuses_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "file"
    state.write_text("not a folder")
    estimates = Estimates(state, ManualClock())
    estimates.put("a", Estimate(used=0.0))
    await estimates.saved()
    assert estimates.get("a") is not None
    assert "cannot be" in caplog.text or "estimates" in caplog.text


async def test_that_is_said_once_until_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    estimates = Estimates(tmp_path, ManualClock())

    async def learn(times: int) -> None:
        for _ in range(times):
            estimates.put("a", Estimate(used=0.0))
            await estimates.saved()

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(durable, "write", full)
            await learn(3)
        await learn(1)
    assert caplog.text.count("estimates.json cannot be written: No space left on device") == 2


async def test_nor_is_a_system_without_a_thread_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    estimates = Estimates(tmp_path, ManualClock())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        estimates.put("a", Estimate(used=0.0))
        await estimates.close()
    assert "cannot be written" in caplog.text
    estimates.put("b", Estimate(used=0.0))
    await estimates.close()
    assert b'"a"' in (tmp_path / FILE).read_bytes()


async def test_a_state_folder_is_made(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    estimates = Estimates(state, ManualClock())
    estimates.put("a", Estimate(used=0.0))
    await estimates.saved()
    assert (state / FILE).is_file()
