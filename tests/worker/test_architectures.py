"""Layouts of caches that few models have; benchmarks/architectures.py looks at all models."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from benchmarks.architecture_shapes import ARCHITECTURES
from mlxd.worker.engine import Engine, Prompt
from tests.support.long import short
from tests.support.model_maker import Shape, write_model

pytestmark = pytest.mark.mlx
LAYOUTS = ("gemma3n", "deepseek_v32", "longcat_flash", "recurrent_gemma", "gemma2")
"""Layers that share keys; two caches a layer; two attentions; states and windows; one row alone."""
PADDED = (
    "afm7", "baichuan_m1", "bailing_moe_linear", "jamba", "longcat_flash_ngram", "mamba",
    "nemotron_h", "olmo_hybrid", "recurrent_gemma", "rwkv7",
)  # fmt: skip
"""That mlx-lm's own batches say something else of, or fail with, when prompts are padded."""


@pytest.mark.parametrize("name", short(LAYOUTS, "gemma3n", "deepseek_v32", "recurrent_gemma"))
def test_sequences_that_join_say_what_each_says_alone(name: str, tmp_path: Path) -> None:
    _say_what_each_says_alone(name, tmp_path, (40, 5, 21), every=3)


@pytest.mark.parametrize("name", short(PADDED, "afm7", "jamba", "rwkv7"))
def test_prompts_that_come_at_once_say_what_each_says_alone(name: str, tmp_path: Path) -> None:
    _say_what_each_says_alone(name, tmp_path, (12, 9, 12, 10), every=0)


def _say_what_each_says_alone(
    name: str, tmp_path: Path, lengths: tuple[int, ...], *, every: int
) -> None:
    """`every`: so many steps one comes; none: all at once."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mlxd.worker.loading import load, prepare_mlx
    from mlxd.worker.mlx_engine import MlxEngine
    from mlxd.worker.sampling import greedy
    from mlxd.worker.serial import SerialEngine

    prepare_mlx()
    config = {key: value for key, value in ARCHITECTURES[name].config.items() if value is not None}
    folder = write_model(tmp_path / name, config, Shape(spread=2.0))
    loaded = load(folder)
    prompts = [[(n * 37 + i * 11) % 500 + 2 for i in range(k)] for n, k in enumerate(lengths)]
    alone = [
        [token for token, _ in generate_step(mx.array(tokens), loaded.model, max_tokens=6)]
        for tokens in prompts
    ]
    engine: Engine = SerialEngine(loaded.model, [])
    if loaded.batchable:
        engine = MlxEngine(loaded.model, [], padded=loaded.sharing == "any")
    said: dict[int, list[int]] = {}
    waiting = [Prompt(tokens, 6, greedy) for tokens in prompts]
    for step in count():
        if not waiting and not len(engine):
            break
        if waiting and (not every or step % every == 0):
            joining, waiting = (waiting[:1], waiting[1:]) if every else (waiting, [])
            engine.insert(joining)
        for token in engine.step().tokens:
            said.setdefault(token.uid, []).append(token.token)
    assert [said[uid] for uid in sorted(said)] == alone
