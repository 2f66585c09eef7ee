"""A worker whose model has another that drafts for it, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlxd.core.request import Sampling
from mlxd.ipc.messages import Cancel, Ready
from tests.support.model_maker import HYBRID, Shape
from tests.support.worker_process import Told, WorkerProcess
from tests.worker.conftest import MakeModel
from tests.worker.test_loading import make_adapter

pytestmark = pytest.mark.mlx
SEEDED = Sampling(temperature=0.9, seed=3, top_p=0.95, frequency_penalty=0.4)


@pytest.fixture(scope="module")
def drafted(varied: Path) -> Iterator[WorkerProcess]:
    """Its model drafts for itself: what it says it says often."""
    process = WorkerProcess(varied, draft=str(varied), draft_tokens=4)
    yield process
    process.close()


def said(told: Told) -> tuple[str, object, list[object]]:
    assert told.ended is not None
    scores = [(entry.token, round(entry.logprob, 3)) for entry in told.logprobs]
    return told.text, (told.ended.reason, told.ended.completion_tokens), list(scores)


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "hello", "max_tokens": 60},
        {"text": "hello", "max_tokens": 60, "sampling": SEEDED},
        {"text": "hello", "max_tokens": 30, "logprobs": 2, "stream": False},
        {"text": "hello", "max_tokens": 30, "format": "json"},
    ],
    ids=["greedy", "seeded", "scored", "held"],
)
def test_an_answer_is_the_same_with_drafts(
    worker: WorkerProcess, drafted: WorkerProcess, asked: dict[str, object]
) -> None:
    plain, told = worker.run(**asked), drafted.run(**asked)
    assert said(told) == said(plain)
    assert told.ended is not None
    assert told.ended.drafted_tokens >= told.ended.accepted_tokens > 0
    assert plain.ended is not None
    assert plain.ended.drafted_tokens == 0


def test_a_stop_string_in_the_middle_of_a_draft_ends_the_answer(
    worker: WorkerProcess, drafted: WorkerProcess
) -> None:
    whole = worker.run(text="hello", max_tokens=60).text
    for at in (7, 8, 9, 10):
        stop = whole[at : at + 3]
        plain = worker.run(text="hello", max_tokens=60, stop=(stop,))
        told = drafted.run(text="hello", max_tokens=60, stop=(stop,))
        assert said(told) == said(plain)
        assert told.ended is not None
        assert told.ended.stop_string == stop


def test_a_limit_in_the_middle_of_a_draft_ends_the_answer(
    worker: WorkerProcess, drafted: WorkerProcess
) -> None:
    for most in (1, 2, 9, 10, 11, 12):
        asked = {"text": "hello", "max_tokens": most}
        assert said(drafted.run(**asked)) == said(worker.run(**asked))


def test_those_who_come_and_go_change_nothing(
    worker: WorkerProcess, drafted: WorkerProcess
) -> None:
    alone = [said(worker.run(text=f"n{n}", max_tokens=40)) for n in range(3)]
    long = drafted.generate(text="hello", max_tokens=2000)
    drafted.until(lambda: bool(drafted.told[long].pieces))
    ids = [drafted.generate(text=f"n{n}", max_tokens=40) for n in range(3)]
    drafted.until(lambda: all(drafted.told[id].over for id in ids))
    drafted.send(Cancel(long))
    drafted.until(lambda: drafted.told[long].cancelled)
    assert [said(drafted.told[id]) for id in ids] == alone


def test_ready_says_what_drafts_or_why_nothing_does(
    model_of: MakeModel, varied: Path, drafted: WorkerProcess
) -> None:
    assert isinstance(drafted.first, Ready)
    assert drafted.first.drafts
    assert not drafted.first.draft_refused
    plain = drafted.first.footprint
    assert plain.draft == plain.groups, "it drafts for itself"
    worker = WorkerProcess(varied, draft=str(model_of(replace(HYBRID, spread=3.0))))
    try:
        assert isinstance(worker.first, Ready)
        assert not worker.first.drafts
        assert "cannot be trimmed" in worker.first.draft_refused
        assert not worker.first.footprint.draft
        assert worker.run(text="hello", max_tokens=5).ended is not None
    finally:
        worker.close()


@pytest.mark.slow
def test_an_adapted_model_batches_and_is_drafted_for(
    model_of: MakeModel, varied: Path, tmp_path: Path
) -> None:
    """By the model without the adapter, which often says the same."""
    adapter = str(make_adapter(tmp_path / "a", model_of(Shape(spread=3.0))))
    plain = WorkerProcess(varied, adapter=adapter)
    both = WorkerProcess(varied, adapter=adapter, draft=str(varied), draft_tokens=3)
    try:
        assert isinstance(both.first, Ready)
        assert (both.first.batchable, both.first.drafts) == (True, True)
        for asked in ({"text": "hello"}, {"text": "hello", "sampling": SEEDED}):
            told = both.run(max_tokens=50, **asked)
            assert said(told) == said(plain.run(max_tokens=50, **asked))
            assert told.ended is not None
            assert told.ended.drafted_tokens > 0
        alone = [said(plain.run(text=f"n{n}", max_tokens=30)) for n in range(3)]
        ids = [both.generate(text=f"n{n}", max_tokens=30) for n in range(3)]
        both.until(lambda: all(both.told[id].over for id in ids))
        assert [said(both.told[id]) for id in ids] == alone
    finally:
        plain.close()
        both.close()
