"""An engine in a process of its own: short sequences, a long one, and all of them, by turns.

What to run as JSON on standard input, a line of JSON for each round on standard output, and one
with bytes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxd.core.footprint import Footprint
from mlxd.worker.engine import Prompt
from mlxd.worker.groups import Groups
from mlxd.worker.loading import load, prepare_mlx
from mlxd.worker.measure import footprint_of
from mlxd.worker.mlx_engine import MlxEngine
from mlxd.worker.sampling import greedy

_ENDLESS = 10**6


class Run:
    """Sequences that decode for ever."""

    def __init__(self, model: Any, groups: Groups, lengths: list[int]) -> None:
        self.groups = groups
        self._engine = MlxEngine(model, [], batches=groups)
        self._engine.insert(
            [Prompt([2 + (7 * n) % 500 for n in range(length)], _ENDLESS, greedy)
             for length in lengths]
        )  # fmt: skip
        while len(groups) < len(lengths):
            self._engine.step()

    def gap(self, steps: int) -> float:
        """Seconds of a step; the first few are not like the others."""
        for _ in range(3):
            self._engine.step()
        found = []
        for _ in range(steps):
            begun = time.perf_counter()
            self._engine.step()
            found.append(time.perf_counter() - begun)
        return median(found)

    @property
    def nbytes(self) -> int:
        mx.synchronize()
        return sum(cache.nbytes for batch in self.groups.batches for cache in batch.prompt_cache)

    @property
    def alone(self) -> list[int]:
        return [length for batch in self.groups.batches for length in batch.lengths]


def main() -> None:
    order = json.load(sys.stdin)
    prepare_mlx()
    model = load(Path(order["model"])).model
    footprint = _footprint(model)
    short, long = [order["short"]] * order["rows"], [order["long"]]
    together = Run(model, Groups(footprint), [*long, *short])
    shorts = Run(model, Groups(footprint), short)
    lone = Run(model, Groups(footprint), long)
    padded = Run(model, Groups(), [*long, *short])
    for _ in range(order["rounds"]):
        found = {
            "short": shorts.gap(order["steps"]),
            "long": lone.gap(order["steps"]),
            "together": together.gap(order["steps"]),
            "padded": padded.gap(max(3, order["steps"] // 5)),
        }
        print(json.dumps(found), flush=True)
    ideal = sum(footprint.cache_bytes([length]) for length in together.alone)
    held = {"bytes": together.nbytes, "ideal_bytes": ideal, "padded_bytes": padded.nbytes}
    print(json.dumps({**held, "groups": len(together.groups.batches)}), flush=True)


def _footprint(model: Any) -> Footprint:
    """As a worker measures it when it has loaded the model."""
    weights = mx.get_active_memory()
    caches = make_prompt_cache(model)
    mx.eval(model(mx.array([[0]]), cache=caches))
    return footprint_of(model, caches, weights, fused=mx.metal.is_available())


if __name__ == "__main__":
    main()
