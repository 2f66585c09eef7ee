"""The engine itself, against mlx-lm's own single-stream generation."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mlxd.worker.engine import Engine, Prompt
from tests.support.model_maker import Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def model(model_of: MakeModel) -> Any:
    from mlxd.worker.loading import load, prepare_mlx

    prepare_mlx()
    return load(model_of(Shape(spread=3.0))).model


def prompt(n: int, length: int, **more: Any) -> Prompt:
    from mlxd.worker.sampling import greedy

    tokens = [(n * 37 + i * 11) % 500 + 2 for i in range(length)]
    return Prompt(tokens, more.pop("max_tokens", 20), greedy, **more)


def run(engine: Engine, waiting: list[Prompt], *, every: int = 3) -> dict[int, list[int]]:
    """Insert one of `waiting` every few steps; the tokens of each, by its place in the list."""
    tokens: dict[int, list[int]] = {}
    step = 0
    waiting = list(waiting)
    while waiting or len(engine):
        if waiting and step % every == 0:
            engine.insert([waiting.pop(0)])
        for token in engine.step():
            tokens.setdefault(token.uid, []).append(token.token)
        step += 1
    return tokens


def test_a_shared_batch_gives_what_generate_step_gives(model):
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    prompts = [prompt(n, length) for n, length in enumerate([5, 60, 3, 200, 1, 17])]
    alone = {
        n: [token for token, _ in generate_step(mx.array(p.tokens), model, max_tokens=20)]
        for n, p in enumerate(prompts)
    }
    assert run(MlxEngine(model, []), prompts) == alone
    assert run(SerialEngine(model, []), prompts) == alone


def test_an_end_token_ends_a_sequence(model):
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    for make in (MlxEngine, SerialEngine):
        first = run(make(model, []), [prompt(1, 9)])[0]
        engine = make(model, [first[4]])
        cut = run(engine, [prompt(1, 9)])[0]
        assert cut == first[: first.index(first[4]) + 1]


def test_log_probabilities_are_worked_out_for_those_who_asked(model):
    import mlx.core as mx

    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [])
    engine.insert([prompt(1, 9, scored=True), prompt(2, 9)])
    rows: dict[int, list[Any]] = {0: [], 1: []}
    while len(engine):
        for token in engine.step():
            rows[token.uid].append(token.logprobs)
    assert all(row is None for row in rows[1][1:])
    for row in rows[0]:
        assert abs(mx.logsumexp(row.astype(mx.float32)).item()) < 1e-4


def steps_to_first(engine: Engine, uid: int) -> int:
    for n in range(100):
        if any(token.uid == uid for token in engine.step()):
            return n
    raise AssertionError("no token")


def test_a_long_prompt_is_cut_smaller_while_others_decode(model):
    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [])
    alone = steps_to_first(engine, *engine.insert([prompt(1, 2000)]))
    engine = MlxEngine(model, [])
    engine.insert([prompt(2, 3, max_tokens=90)])
    for _ in range(4):
        engine.step()
    beside = steps_to_first(engine, *engine.insert([prompt(1, 2000)]))
    assert alone <= 3 < 5 <= beside


@pytest.mark.parametrize("stage", [0, 1, 6])
def test_a_removed_sequence_leaves_at_any_stage(model, stage):
    from mlxd.worker.mlx_engine import MlxEngine

    engine = MlxEngine(model, [])
    (uid,) = engine.insert([prompt(1, 300)])
    for _ in range(stage):
        engine.step()
    engine.remove([uid, 999])
    assert len(engine) == 0
    assert all(token.uid != uid for token in engine.step())


def test_an_empty_prompt_is_a_value_error_and_nothing_is_queued(model):
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.serial import SerialEngine

    for make in (MlxEngine, SerialEngine):
        engine: Engine = make(model, [])
        with pytest.raises(ValueError, match="prompt"):
            engine.insert([prompt(1, 3), prompt(1, 0)])
        assert len(engine) == 0


def test_no_generator_wires_memory(model, monkeypatch):
    import mlx.core as mx

    from mlxd.worker.mlx_engine import MlxEngine

    def wire(*_: Any) -> int:
        raise AssertionError("wired")

    monkeypatch.setattr(mx, "set_wired_limit", wire)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 2**30})
    MlxEngine(model, [])
    assert sys.modules["mlx_lm.generate"].maybe_set_recommended_wired_limit() is None
