"""A worker process with a disk behind its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlxd.core.request import GenerationRequest, Message
from mlxd.ipc.messages import (
    Budget,
    CacheAsk,
    CacheStats,
    Noted,
    Observed,
    PrefixFiles,
    PrefixRules,
    Shutdown,
    WarmPrompt,
)
from tests.support.model_maker import Shape
from tests.support.worker_process import Told, WorkerProcess
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx
SYSTEM = "You are an agent, and answer at length. " * 60
LONG = Shape(spread=3.0, context=16384)


@contextmanager
def worker(model: Path, folder: Path, **more: Any) -> Iterator[WorkerProcess]:
    process = WorkerProcess(
        model,
        context=16384,
        prefixes=PrefixFiles(bytes(folder), "digest", **more),
        budget=Budget(0, 0, 0, prefix_bytes=2**30),
    )
    try:
        yield process
    finally:
        process.close()


def ended(process: WorkerProcess) -> int:
    process.send(Shutdown())
    return process.process.wait(20)


def talk(text: str, system: str = SYSTEM) -> dict[str, Any]:
    return {"messages": (Message("system", system), Message("user", text)), "max_tokens": 6}


def cached(told: Told) -> int:
    assert told.ended is not None
    return told.ended.cached_tokens


def stats(process: WorkerProcess) -> CacheStats:
    process.send(CacheAsk(1))
    while True:
        found = [one for one in process.receive() if isinstance(one, CacheStats)]
        if found:
            return found[0]


def test_the_end_writes_what_the_next_one_begins_with(model_of: MakeModel, tmp_path: Path) -> None:
    model, folder = model_of(LONG), tmp_path / "prefixes"
    with worker(model, folder) as first:
        cold = first.run(**talk("Hello"))
        first.until(lambda: any(memory.prefix > 0 for memory in first.memories))
        assert ended(first) == 0
    assert cached(cold) == 0
    with worker(model, folder) as second:
        ids = [second.generate(**talk(text)) for text in ("Hello", "Hello", "Bye")]
        second.until(lambda: all(second.told[id].over for id in ids))
        assert all(cached(second.told[id]) > 256 for id in ids)
        assert second.told[ids[0]].text == second.told[ids[1]].text == cold.text
        assert stats(second).disk_entries >= 1


@pytest.mark.slow
def test_off_is_empty(model_of: MakeModel, tmp_path: Path) -> None:
    model, folder = model_of(LONG), tmp_path / "prefixes"
    with worker(model, folder) as first:
        first.run(**talk("Hello"))
        assert ended(first) == 0
    assert list(folder.rglob("*.prefix")) != []
    with worker(model, folder, disk_bytes=0) as off:
        assert cached(off.run(**talk("Hello"))) == 0
        assert stats(off).disk_entries == 0
    assert list(folder.rglob("*.prefix")) == []


@pytest.mark.slow
def test_a_warm_prompt_makes_way(model_of: MakeModel, tmp_path: Path) -> None:
    """Whoever comes while one is being read does not wait for it, and nothing is lost."""
    long = "A rule for an agent of ours. " * 160
    asked = (Message("system", long), Message("user", "Hello"))
    warm = WarmPrompt("long", GenerationRequest(model="m", messages=asked))
    with worker(model_of(LONG), tmp_path / "prefixes") as process:
        process.send(PrefixRules(None, [], [warm]))
        process.until(lambda: process.told[-1].started == 1)
        told = process.run(text="Hello", max_tokens=2)
        assert told.ended is not None
        assert not process.told[-1].over
        process.until(lambda: process.told[-2].over)
        read = process.told[-2].ended
        assert read is not None
        assert read.prompt_tokens > 2000
        assert cached(process.run(**talk("Hello", long))) > 2000
        assert ended(process) == 0
    assert any(file.name.endswith(".kept.prefix") for file in tmp_path.rglob("*.prefix"))


def test_a_warm_prompt_that_is_none_is_told_and_passed_over(
    model_of: MakeModel, tmp_path: Path
) -> None:
    strange = GenerationRequest(model="m", messages=(Message("system", "x" * 10**6),))
    usual = GenerationRequest(model="m", messages=talk("Hello")["messages"])
    with worker(model_of(LONG), tmp_path / "prefixes") as process:
        process.send(PrefixRules(None, [], [WarmPrompt("a", strange), WarmPrompt("b", usual)]))
        heard: list[Any] = []
        while not any(isinstance(one, Observed) for one in heard):
            heard += process.receive()
        assert [one.words for one in heard if isinstance(one, Noted)] == [
            "a prompt of its prefixes.warm is none that it can read"
        ]
        assert cached(process.run(**talk("Hello"))) > 256
