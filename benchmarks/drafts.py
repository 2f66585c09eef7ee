"""How much faster a lone stream is with a model that drafts, in an engine in this process.

python benchmarks/drafts.py [--short] [--layers 24] [--tokens 256] [--rounds 5] [--device-name NAME]

The drafter is the first layers of the large model. What the other layers add is made small: nothing
at all, so that both always agree, or as much as makes them agree often. Answers with drafts are
compared with those without, token by token.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.throughput import say
from mlxd.core.request import Sampling
from mlxd.worker import stand_in
from tests.support.model_maker import Shape, make_model

stand_in.install()
Json = dict[str, Any]
_DRAFT_LAYERS = 1
_PROMPT = [7 + n * 11 % 400 for n in range(64)]
_SAMPLINGS = {"greedy": Sampling(temperature=0.0), "warm": Sampling(temperature=0.8, seed=1)}


@dataclass(frozen=True)
class Pair:
    """A large model, and what drafts for it."""

    name: str
    addition: float
    """What the layers that the drafter lacks add, against what they would."""


PAIRS = (Pair("always", 0.0), Pair("often", 0.03), Pair("seldom", 0.3))


def measure(options: argparse.Namespace) -> Json:
    found: Json = report.begun() | {"problems": [], "rows": [], "device": options.device_name}
    shape = Shape(
        hidden=options.hidden, layers=options.layers, heads=8, kv_heads=2,
        intermediate=4 * options.hidden, dtype=options.dtype, spread=1.5,
    )  # fmt: skip
    found |= {"layers": shape.layers, "hidden": shape.hidden, "dtype": shape.dtype}
    found |= {"draft_layers": _DRAFT_LAYERS, "tokens": options.tokens, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "m", shape)
        for pair in PAIRS:
            large, small = _pair(folder, pair)
            for name, sampling in _SAMPLINGS.items():
                found["rows"].append(_row(pair, name, sampling, large, small, options, found))
                say(f"{pair.name}, {name}")
    return found


def _pair(folder: Path, pair: Pair) -> tuple[Any, Any]:
    """Both with the weights of one folder."""
    import mlx.core as mx

    from mlxd.worker.loading import load

    large, small = load(folder).model, load(folder).model
    small.model.layers = small.model.layers[:_DRAFT_LAYERS]
    for layer in large.model.layers[_DRAFT_LAYERS:]:
        layer.self_attn.o_proj.weight *= pair.addition
        layer.mlp.down_proj.weight *= pair.addition
    mx.eval(large.parameters())
    return large, small


def _row(
    pair: Pair, name: str, sampling: Sampling, large: Any, small: Any,
    options: argparse.Namespace, found: Json,
) -> Json:  # fmt: skip
    """Rounds without and with, in turn; medians."""
    plain, drafted = _Contestant(large, None), _Contestant(large, small)
    rates = [
        (plain.run(sampling, options.tokens), drafted.run(sampling, options.tokens))
        for _ in range(options.rounds + 1)  # the first warms up
    ]
    if plain.said != drafted.said:
        found["problems"].append(f"{pair.name}, {name}: drafts have changed the answer")
    without, with_drafts = (median(each) for each in zip(*rates[1:], strict=True))
    return {
        "agree": pair.name, "sampling": name,
        "plain_tokens_per_second": without, "drafted_tokens_per_second": with_drafts,
        "speed_up": with_drafts / without,
        "drafted": drafted.drafted, "accepted": drafted.accepted,
        "same": plain.said == drafted.said,
    }  # fmt: skip


class _Contestant:
    """An engine, which learns from round to round."""

    def __init__(self, model: Any, draft: Any) -> None:
        from mlxd.worker.drafter import Drafter
        from mlxd.worker.mlx_engine import MlxEngine
        from mlxd.worker.speculation import Speculation

        speculation = None if draft is None else Speculation(Drafter(draft, 512))
        self._engine = MlxEngine(model, [], speculation=speculation)
        self.said: list[int] = []
        self.drafted = self.accepted = 0
        """Of the last round."""

    def run(self, sampling: Sampling, tokens: int) -> float:
        """One answer; its tokens in a second, from the first on."""
        from mlxd.worker.engine import Prompt
        from mlxd.worker.sampling import Guard, sampler_of

        sampler = sampler_of(sampling, Guard(), vocabulary=512)
        self._engine.insert([Prompt(list(_PROMPT), tokens, sampler)])
        self.said, self.drafted, self.accepted, first = [], 0, 0, 0.0
        while len(self._engine):
            step = self._engine.step()
            self.said += [token.token for token in step.tokens]
            if not first and self.said:
                first = time.perf_counter()
            self.drafted += sum(drafts.drafted for drafts in step.drafts)
            self.accepted += sum(drafts.accepted for drafts in step.drafts)
        return (len(self.said) - 1) / (time.perf_counter() - first)


def _page(found: Json) -> str:
    columns = ["agree", "sampling", "tokens/s without", "with", "speed-up", "drafted", "came true"]
    cells = [
        [
            row["agree"], row["sampling"], f"{row['plain_tokens_per_second']:.1f}",
            f"{row['drafted_tokens_per_second']:.1f}", f"{row['speed_up']:.2f}",
            str(row["drafted"]), str(row["accepted"]),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    words = [
        f"{found['layers']} layers of {found['hidden']}, {found['dtype']}, drafted for by the first"
        f" {found['draft_layers']}; answers of {found['tokens']} tokens, medians of"
        f" {found['rounds']} rounds." + (f" On {found['device']}." if found["device"] else ""),
    ]
    return report.page("Drafts", found, words, table.grid(columns, cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    report.add_options(parser)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device-name", default="", help="what it ran on, where that is a GPU")
    options = parser.parse_args()
    if options.short:
        options.layers, options.hidden, options.tokens, options.rounds = 4, 64, 32, 1
    from mlxd.worker.loading import prepare_mlx

    prepare_mlx()
    found = measure(options)
    return report.publish(options, "drafts", found, _page(found))


if __name__ == "__main__":
    raise SystemExit(main())
