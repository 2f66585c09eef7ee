"""An engine that fails is made anew: its answers go on as if nothing had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.ipc.messages import Shutdown
from tests.integration.reciter import FATAL, make_fragile
from tests.support.model_maker import HYBRID, SLIDING, UNMERGEABLE, Shape, make_model
from tests.support.worker_process import WorkerProcess
from tests.worker.bench import Bench, answer_of
from tests.worker.conftest import MakeModel
from tests.worker.test_resume import ASKED, DRAWN, HOT, LONGER, PENALISED

pytestmark = pytest.mark.mlx

CACHES: dict[str, tuple[Shape, dict[str, Any]]] = {
    "full": (Shape(spread=3.0), {}),
    "sliding": (replace(SLIDING, spread=3.0), {}),
    "hybrid": (replace(HYBRID, spread=3.0), {}),
    "serial": (replace(UNMERGEABLE, spread=3.0), {}),
}
ASKS: list[dict[str, Any]] = [
    {"max_tokens": 30},
    {"max_tokens": 24, "sampling": DRAWN, "stream": False},
    {"max_tokens": 20, "sampling": PENALISED, "logprobs": 1},
    {"max_tokens": 90, "sampling": HOT, "format": LONGER},
]


def fail_once(bench: Bench, at: int, *, late: bool) -> None:
    """In step `at`; `late`: when all of it has been done, and the next one was begun."""
    step: Callable[[], Any] = bench.loop._engine.step
    engine: Any = bench.loop._engine
    steps = 0

    def failing() -> Any:
        nonlocal steps
        steps += 1
        if steps == at and not late:
            raise RuntimeError("[METAL] Command buffer execution failed")
        done = step()
        if steps == at:
            raise RuntimeError("[METAL] Command buffer execution failed")
        return done

    engine.step = failing


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.slow
def test_answers_go_on_in_an_engine_made_anew(model_of: MakeModel, cache: str) -> None:
    shape, launch = CACHES[cache]
    bench = Bench(model_of(shape), **launch)
    asks = ASKS[:3] if cache == "hybrid" else ASKS
    expected = bench.run([bench.message(messages=ASKED, **ask) for ask in asks])
    for at, late in ((1, True), (9, True), (17, False)):
        fail_once(bench, at, late=late)
        bench.loop._sound_from = 0
        failed = bench.loop._engine
        again = bench.run([bench.message(messages=ASKED, **ask) for ask in asks])
        assert bench.loop._engine is not failed
        for mine, whole in zip(again, expected, strict=True):
            assert mine.refused is None
            assert mine.tokens == whole.tokens
            assert answer_of(mine.pieces).said == answer_of(whole.pieces).said
            assert answer_of(mine.pieces).end == answer_of(whole.pieces).end
            assert (mine.started, mine.begun) == (1, 1)
            assert mine.ended.prefill_seconds >= 0


FRAIL = """
from mlx_lm.models.llama import Model as Llama, ModelArgs

calls = 0


class Model(Llama):
    def __call__(self, inputs, cache=None, **more):
        global calls
        calls += inputs.shape == (2, 1)
        if calls == 10:
            calls += 1
            raise RuntimeError("the model's own code")
        return super().__call__(inputs, cache=cache, **more)
"""


def test_a_models_own_code_that_fails_once_is_survived(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", Shape(spread=3.0))
    (folder / "code.py").write_text(FRAIL)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_file": "code.py"}))
    worker = WorkerProcess(folder, trust_remote_code=True)
    stderr = worker.process.stderr
    assert stderr is not None
    try:
        asked: list[dict[str, Any]] = [
            {"messages": ASKED, "max_tokens": 200},
            {"text": "hello fox", "max_tokens": 200},
        ]
        alone = [worker.run(**ask).text for ask in asked]
        ids = [worker.generate(**ask) for ask in asked]
        worker.until(lambda: all(worker.told[id].over for id in ids))
        assert [worker.told[id].text for id in ids] == alone
        worker.send(Shutdown())
        assert b"made anew, and 2 requests go on" in stderr.read()
    finally:
        worker.close()


@pytest.mark.slow
def test_a_models_own_code_that_always_fails_ends_the_worker_with_70(tmp_path: Path) -> None:
    folder = make_fragile(tmp_path / "m", "RuntimeError('never')")
    worker = WorkerProcess(folder, trust_remote_code=True)
    try:
        worker.generate(token_ids=(5, 6, FATAL), max_tokens=9)
        with pytest.raises(EOFError):
            worker.until(lambda: False)
        assert worker.process.wait(20) == 70
    finally:
        worker.close()
