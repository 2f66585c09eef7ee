"""A worker's budget with a real engine: what waits, what is refused, what is measured."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from mlxd.core.footprint import Footprint, Moment
from mlxd.ipc.messages import EXIT_MEMORY, Budget, Cancel, LoadFailed, Ping, Ready, Shutdown, Trim
from mlxd.worker.__main__ import _failed
from tests.integration.reciter import make_fragile
from tests.support.model_maker import SLIDING, Shape
from tests.support.worker_process import WorkerProcess
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

FREELY = 1 << 24


def footprint(worker: WorkerProcess) -> Footprint:
    assert isinstance(worker.first, Ready)
    return worker.first.footprint


def room(worker: WorkerProcess, prompt: int, answer: int = 256) -> int:
    """Bytes for one sequence."""
    return footprint(worker).peak_bytes([], [prompt + answer], prompts=[prompt])


def allow(worker: WorkerProcess, size: int, *, most: int = 0, answers: int = 0) -> None:
    worker.send(Budget(size, most, FREELY, answers=answers))


@pytest.fixture
def tight(varied: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(varied)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def shared(varied: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(varied)
    yield worker
    worker.close()


@pytest.fixture
def kept(shared: WorkerProcess) -> WorkerProcess:
    """For tests that tell it their budget, and leave nothing running in it."""
    assert all(told.over for told in shared.told.values())
    shared.needs.clear()
    return shared


def test_what_a_model_takes_is_measured_as_it_is_loaded(kept: WorkerProcess):
    found = footprint(kept)
    assert isinstance(kept.first, Ready)
    assert found.weights_bytes > 100_000
    assert kept.first.active_bytes == found.weights_bytes
    assert kept.first.peak_bytes >= found.weights_bytes
    token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, numbers, bytes
    assert found.cache_bytes([256]) == 256 * token


def test_what_an_earlier_load_has_measured_is_taken_over(kept: WorkerProcess, varied: Path):
    told = replace(footprint(kept), weights_bytes=1, decode=(Moment(row=12345),))
    again = WorkerProcess(varied, footprint=told, measured=True)
    again.close()
    assert footprint(again) == replace(told, weights_bytes=footprint(kept).weights_bytes)


def test_what_would_pad_the_batch_beyond_its_budget_waits_and_runs_alone(kept: WorkerProcess):
    size = room(kept, 100, 3700)
    allow(kept, size, most=size)
    short = [kept.generate(text="hello", max_tokens=400, expected_output=400) for _ in range(4)]
    kept.until(lambda: all(kept.told[id].accepted for id in short))
    long = kept.generate(token_ids=(9,) * 100, max_tokens=3700, expected_output=3700)
    after = kept.generate(text="hello", max_tokens=3)
    told = kept.told
    kept.until(lambda: told[long].accepted is not None)
    assert all(told[id].ended for id in short)
    assert told[after].accepted is None, "it came later"
    kept.send(Cancel(long))
    kept.until(lambda: told[after].over)
    assert told[after].ended is not None
    assert {need.id for need in kept.needs} == {long, after}, "the daemon decides"


@pytest.mark.slow
def test_a_request_that_waits_for_memory_is_cancelled(tight: WorkerProcess):
    allow(tight, room(tight, 256))
    waiting = tight.generate(token_ids=(9,) * 2000, max_tokens=10)
    tight.until(lambda: bool(tight.needs))
    tight.send(Cancel(waiting))
    tight.until(lambda: tight.told[waiting].over)
    assert tight.told[waiting].cancelled
    assert tight.run(text="hello", max_tokens=3, expected_output=8).ended is not None


@pytest.mark.slow
def test_a_worker_in_which_a_request_waits_gives_signs_of_life_and_shuts_down(
    tight: WorkerProcess,
):
    allow(tight, room(tight, 256))
    tight.generate(token_ids=(9,) * 2000, max_tokens=10)
    tight.until(lambda: bool(tight.needs))
    before = tight.outputs
    tight.until(lambda: tight.outputs > before)
    tight.send(Shutdown())
    assert tight.process.wait(5) == 0


def test_more_is_asked_for_granted_and_taken_back(kept: WorkerProcess):
    small, large = room(kept, 256), room(kept, 2000, 10)
    allow(kept, small)
    id = kept.generate(token_ids=(9,) * 2000, max_tokens=10)
    kept.until(lambda: bool(kept.needs))
    assert small < kept.needs[0].bytes == large
    allow(kept, kept.needs[0].bytes, answers=kept.needs[0].id)
    kept.until(lambda: kept.told[id].over)
    assert kept.told[id].ended is not None


def test_a_refusal_says_what_it_would_take(kept: WorkerProcess):
    size = room(kept, 256)
    allow(kept, size)
    id = kept.generate(token_ids=(9,) * 2000, max_tokens=10)
    kept.until(lambda: bool(kept.needs))
    allow(kept, size, answers=kept.needs[0].id)
    kept.until(lambda: kept.told[id].over)
    refused = kept.told[id].refused
    assert refused is not None
    assert refused.code == "insufficient_memory"
    assert refused.needed_bytes == kept.needs[0].bytes
    assert refused.available_bytes == size


def test_a_prompt_that_fits_into_no_budget_is_told_the_length_that_would(kept: WorkerProcess):
    size = room(kept, 1024, 0)
    allow(kept, size, most=size)
    id = kept.generate(token_ids=(9,) * 2000, max_tokens=10)
    kept.until(lambda: bool(kept.needs))
    allow(kept, size, most=size, answers=id)
    kept.until(lambda: kept.told[id].over)
    refused = kept.told[id].refused
    assert refused is not None
    assert refused.code == "context_exceeded"
    assert f"of {footprint(kept).longest(size)} tokens together would fit" in refused.message


def test_an_answer_grows_with_what_is_granted_else_it_ends_with_length(kept: WorkerProcess):
    allow(kept, room(kept, 20))
    id = kept.generate(text="hello", max_tokens=2000, expected_output=8)
    kept.until(lambda: len(kept.needs) == 1)
    assert kept.needs[0].id == id
    allow(kept, kept.needs[0].bytes, answers=id)
    kept.until(lambda: len(kept.needs) == 2)
    allow(kept, kept.needs[0].bytes, answers=id)
    kept.until(lambda: kept.told[id].over)
    ended = kept.told[id].ended
    assert ended is not None
    assert ended.reason == "length"
    assert 400 < ended.completion_tokens < 1000


@pytest.mark.slow
def test_what_was_predicted_and_what_it_took_is_told_when_all_is_done(tight: WorkerProcess):
    ids = [tight.generate(text="hello", max_tokens=400) for _ in range(3)]
    tight.until(lambda: bool(tight.observed))
    assert all(tight.told[id].ended for id in ids)
    (observed,) = tight.observed
    assert observed.rows == 3
    assert 400 < observed.longest < 420
    assert observed.predicted_bytes >= footprint(tight).peak_bytes([observed.longest] * 3)
    assert observed.measured_bytes > footprint(tight).weights_bytes
    assert tight.memories[-1].active < observed.measured_bytes, "it rests"


@pytest.mark.slow
def test_what_is_held_is_told_when_buffers_are_freed(tight: WorkerProcess):
    tight.run(text="hello", max_tokens=10)
    tight.until(lambda: bool(tight.observed))
    tight.memories.clear()
    tight.send(Trim())
    tight.until(lambda: bool(tight.memories))
    assert tight.memories[0].cache == 0


@pytest.mark.slow
def test_exclusive_engines_of_two_processes_both_get_on(varied: Path, tmp_path: Path):
    budget = Budget(0, 0, FREELY, exclusive=True)
    turns = bytes(tmp_path / "turns")
    pair = [WorkerProcess(varied, budget=budget, turns=turns) for _ in range(2)]
    try:
        ids = [worker.generate(text="hello", max_tokens=300) for worker in pair]
        for worker, id in zip(pair, ids, strict=True):
            told = worker.told[id]
            while not told.over:
                worker.receive()
            assert told.ended is not None
        assert (tmp_path / "turns").exists()
    finally:
        for worker in pair:
            worker.close()


@pytest.mark.slow
def test_a_killed_exclusive_engine_does_not_hold_up_another(varied: Path, tmp_path: Path):
    budget = Budget(0, 0, FREELY, exclusive=True)
    turns = bytes(tmp_path / "turns")
    dying, other = (WorkerProcess(varied, budget=budget, turns=turns) for _ in range(2))
    try:
        first = dying.generate(text="hello", max_tokens=4000)
        dying.until(lambda: len(dying.told[first].pieces) > 3)
        dying.process.kill()
        assert other.run(text="hello", max_tokens=20).ended is not None
    finally:
        dying.close()
        other.close()


@pytest.mark.slow
def test_an_engine_that_waits_for_its_turn_says_that_it_is_well(varied: Path, tmp_path: Path):
    """Each ping is a sign of life, and no step is missed: nothing of it runs."""
    from mlxd.worker.turns import Turns

    turns = Turns(tmp_path / "turns")
    turns.exclusive = True
    worker = WorkerProcess(
        varied, budget=Budget(0, 0, FREELY, exclusive=True), turns=bytes(tmp_path / "turns")
    )
    try:
        with turns.turn():
            id = worker.generate(text="hello", max_tokens=3)
            worker.until(lambda: worker.told[id].accepted is not None)
            deadline = time.monotonic() + 20
            while not worker.outputs:
                assert time.monotonic() < deadline, "it does not say that it waits"
                worker.pongs.clear()
                worker.send(Ping())
                worker.until(lambda: bool(worker.pongs))
            assert worker.pongs[-1].running == 0
            assert worker.pongs[-1].step == 0
        worker.until(lambda: worker.told[id].over)
        worker.send(Ping())
        worker.until(lambda: worker.pongs[-1].step > 0)
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("RuntimeError('[metal::malloc] Resource limit (499000) exceeded.')", EXIT_MEMORY),
        pytest.param("MemoryError('none left')", EXIT_MEMORY, marks=pytest.mark.slow),
        pytest.param(
            "RuntimeError('[METAL] Command buffer execution failed: hang')",
            70,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_engine_without_memory_ends_its_process_with_a_status_of_its_own(
    tmp_path: Path, error: str, status: int
):
    worker = WorkerProcess(make_fragile(tmp_path / "m", error), trust_remote_code=True)
    assert worker.run(token_ids=(5, 6), max_tokens=1).ended is not None
    worker.generate(token_ids=(5, 77, 77), max_tokens=5)
    with pytest.raises(EOFError):
        worker.until(lambda: False)
    assert worker.process.wait(10) == status
    worker.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("none left"), EXIT_MEMORY),
        (RuntimeError("[metal::malloc] Resource limit (499000) exceeded."), EXIT_MEMORY),
        (RuntimeError("[METAL] Command buffer execution failed: hang"), 70),
        (ValueError("[metal::malloc] Resource limit (499000) exceeded."), 70),
    ],
)
def test_what_the_engine_raised_decides_the_status(error: Exception, status: int):
    loop = Mock()
    assert _failed(loop, error) == status
    assert loop.last_words.called == (status == EXIT_MEMORY)


@pytest.mark.slow
def test_code_in_a_models_folder_runs_only_where_it_is_trusted(tmp_path: Path):
    worker = WorkerProcess(make_fragile(tmp_path / "m"))
    assert isinstance(worker.first, LoadFailed)
    assert worker.process.wait(10) == 1
    worker.close()


def test_a_worker_ends_with_its_status_and_without_taking_python_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What native threads do to an interpreter that ends, they do now and then: here, always."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, os\natexit.register(os.abort)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    worker = WorkerProcess(make_fragile(tmp_path / "m"))
    try:
        assert isinstance(worker.first, LoadFailed)
        assert worker.process.wait(10) == 1
    finally:
        worker.close()


def test_a_load_without_memory_has_the_same_status(tmp_path: Path):
    folder = make_fragile(tmp_path / "m")
    code = (folder / "code.py").read_text()
    (folder / "code.py").write_text(code.replace("_last(inputs) == 77", "True"))
    worker = WorkerProcess(folder, trust_remote_code=True)
    assert isinstance(worker.first, LoadFailed)
    assert "not enough memory" in worker.first.reason
    assert worker.process.wait(10) == EXIT_MEMORY
    worker.close()


@pytest.mark.slow
def test_quantised_caches_take_less_and_answer_alone(model_of: MakeModel):
    shape = Shape(hidden=256, spread=3.0)
    plain = WorkerProcess(model_of(shape))
    small = WorkerProcess(model_of(shape), kv_bits=8)
    try:
        assert isinstance(small.first, Ready)
        assert not small.first.batchable
        rate = footprint(small).cache_bytes([2048]) / footprint(plain).cache_bytes([2048])
        assert 0.2 < rate < 0.4
        ids = [small.generate(text="hello", max_tokens=300) for _ in range(2)]
        small.until(lambda: all(small.told[id].over for id in ids))
        same = plain.run(text="hello", max_tokens=40).text
        assert [small.told[id].text[:10] for id in ids] == [same[:10]] * 2
        small.until(lambda: bool(small.observed))
        assert small.observed[0].rows == 2
    finally:
        plain.close()
        small.close()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(spread=3.0), "a head's size is no multiple of 64"),
        (replace(SLIDING, hidden=256, spread=3.0), "a sliding window's cache"),
    ],
    ids=["head of 16", "sliding"],
)
@pytest.mark.slow
def test_caches_that_cannot_be_quantised_are_refused_in_words(
    model_of: MakeModel, shape: Shape, words: str
):
    worker = WorkerProcess(model_of(shape), kv_bits=8)
    assert isinstance(worker.first, LoadFailed)
    assert words in worker.first.reason
    worker.close()


@pytest.mark.slow
def test_a_prompt_of_one_token_is_quantised_too(model_of: MakeModel):
    for bits in (2, 3, 4, 6, 8):
        worker = WorkerProcess(model_of(Shape(hidden=256, spread=3.0)), kv_bits=bits)
        for prompt in ((9,), (9,) * 700):
            ended = worker.run(token_ids=prompt, max_tokens=300).ended
            assert ended is not None
            assert ended.completion_tokens == 300
        worker.close()
