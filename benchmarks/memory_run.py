"""One model in a process of its own: what its scenarios were predicted to take, and took.

A shape as JSON on standard input, a line of JSON for each scenario on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.generate
import mlx_lm.utils
from mlx_lm.models.cache import make_prompt_cache

from benchmarks.memory_shapes import Scenario, Shape
from mlxd.control import shape as from_files
from mlxd.core.footprint import PREFILL_ALONE, Footprint
from mlxd.core.grouping import UNBOUNDED
from mlxd.core.models import ModelCard
from mlxd.worker.engine import Prompt
from mlxd.worker.groups import Groups
from mlxd.worker.loading import prepare_mlx
from mlxd.worker.measure import footprint_of
from mlxd.worker.mlx_engine import MlxEngine
from mlxd.worker.pace import FIRST_TOKENS
from mlxd.worker.sampling import greedy

_ENDLESS = 10**6
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def main() -> None:
    given = json.load(sys.stdin)
    scenarios = [
        Scenario(s["name"], tuple(s["running"]), tuple(s["joining"]), s["decoded"])
        for s in given.pop("scenarios")
    ]
    shape = Shape(**given)
    prepare_mlx()
    model = _built(shape)
    weights = mx.get_active_memory()
    measured, computed = _measured(model, weights), _computed(shape, weights)
    for scenario in scenarios:
        peak = _peak(model, measured, scenario)
        result = {
            "scenario": scenario.name,
            "weights": weights,
            "peak": peak,
            "predicted": _predicted(measured, scenario),
            "computed": _predicted(computed, scenario),
        }
        print(json.dumps(result), flush=True)


def _built(shape: Shape) -> Any:
    mx.random.seed(0)
    model_class, arguments = mlx_lm.utils._get_classes(shape.config)
    model = model_class(arguments.from_dict(shape.config))
    if shape.bits:
        nn.quantize(model, group_size=32, bits=shape.bits)
    model.set_dtype(getattr(mx, shape.dtype))
    mx.eval(model.parameters())
    return model


def _measured(model: Any, weights: int) -> Footprint:
    """As a worker does it after its first step."""
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    return footprint_of(model, caches, weights, fused=False)


def _computed(shape: Shape, weights: int) -> Footprint:
    """As the daemon does it before it has ever loaded the model."""
    card = ModelCard(
        name="m",
        path="/m",
        size_bytes=weights,
        digest="0" * 64,
        modified=0.0,
        family=shape.config["model_type"],
        parameters=0,
        quantization=f"{shape.bits}bit" if shape.bits else _DTYPES[shape.dtype],
        context=32768,
        config={"dtype": shape.dtype, **shape.config, **shape.config.get("text_config", {})},
    )
    return from_files.footprint_of(card, fused=False)


def _predicted(footprint: Footprint, scenario: Scenario) -> int:
    running = [tokens + scenario.decoded for tokens in scenario.running]
    joining = [tokens + scenario.decoded for tokens in scenario.joining]
    peaks = [footprint.peak_bytes(running, joining, prompts=scenario.joining, room=UNBOUNDED)]
    if running:
        alone = footprint.peak_bytes([], running, prompts=scenario.running, room=UNBOUNDED)
        peaks.append(alone)
    return max(peaks)


def _peak(model: Any, footprint: Footprint, scenario: Scenario) -> int:
    """Nothing that an earlier scenario left counts, nor how long anything takes."""
    groups = Groups(footprint)
    engine = MlxEngine(model, [], batches=groups, clock=lambda: 0.0)
    engine._pace.prefilled(PREFILL_ALONE, 0.0, beside=False)
    engine.insert([Prompt([1] * FIRST_TOKENS, 1, greedy)])
    while len(engine):
        engine.step()
    mx.clear_cache()
    mx.reset_peak_memory()
    rows = 0
    for prompts in (scenario.running, scenario.joining):
        _insert(engine, prompts)
        rows += len(prompts)
        while len(groups) < rows:
            engine.step()
    for _ in range(scenario.decoded):
        engine.step()
    return mx.get_peak_memory()


def _insert(engine: MlxEngine, prompts: tuple[int, ...]) -> None:
    tokens = [[1 + (7 * place) % 97 for place in range(length)] for length in prompts]
    engine.insert([Prompt(each, _ENDLESS, greedy) for each in tokens])


if __name__ == "__main__":
    main()
