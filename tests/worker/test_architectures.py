"""Layouts of caches that few models have; benchmarks/architectures.py looks at all models."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from benchmarks.architecture_shapes import ARCHITECTURES
from mlxd.worker.engine import Prompt
from tests.support.each import each
from tests.support.model_maker import Shape, write_model

pytestmark = pytest.mark.mlx
LAYOUTS = ("gemma3n", "deepseek_v32", "longcat_flash", "recurrent_gemma", "gemma2")
"""Layers that share keys; two caches a layer; two attentions; states and windows; one row alone."""


@each(LAYOUTS)
def test_sequences_that_join_say_what_each_says_alone(name: str, tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlxd.worker.loading import load, prepare_mlx
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.sampling import greedy
    from mlxd.worker.serial import SerialEngine

    prepare_mlx()
    folder = write_model(tmp_path / name, ARCHITECTURES[name].config, Shape(spread=2.0))
    loaded = load(folder)
    prompts = [[(n * 37 + i * 11) % 500 + 2 for i in range(k)] for n, k in enumerate((40, 5, 21))]
    alone = [
        [token for token, _ in generate_step(mx.array(tokens), loaded.model, max_tokens=6)]
        for tokens in prompts
    ]
    engine = (MlxEngine if loaded.batchable else SerialEngine)(loaded.model, [])
    said: dict[int, list[int]] = {}
    waiting = [Prompt(tokens, 6, greedy) for tokens in prompts]
    for step in count():
        if not waiting and not len(engine):
            break
        if waiting and step % 3 == 0:
            engine.insert([waiting.pop(0)])
        for token in engine.step().tokens:
            said.setdefault(token.uid, []).append(token.token)
    assert [said[uid] for uid in sorted(said)] == alone
