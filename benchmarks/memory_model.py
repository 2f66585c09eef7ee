"""How well is it known beforehand what an engine will hold? Real engines, models of random sizes.

python benchmarks/memory_model.py [--seed N] [--shapes N] [--kinds llama ...] [--short]

Exit status 1 when a prediction by a loaded model's footprint is more than 15 % from what was
measured, or one that has learned from 20 observations more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import table
from benchmarks.memory_shapes import KINDS, Shape, observations, shapes
from mlxd.control.estimates import Estimate, learned

HERE = Path(__file__).parent
MOST = 0.15
MOST_LEARNED = 0.10
LEARNED_FROM = 20
ASKED_AFTER = 5
SHARE = 0.5
"""Of caches and of what steps compute with, in the peak: less shows little."""


@dataclass(frozen=True)
class Result:
    """One scenario. Errors are shares of what was measured, above zero where too much was said."""

    kind: str
    shape: str
    scenario: str
    weights: int
    peak: int
    predicted: int
    computed: int

    @property
    def error(self) -> float:
        return self.predicted / self.peak - 1

    @property
    def computed_error(self) -> float:
        return self.computed / self.peak - 1

    @property
    def share(self) -> float:
        return 1 - self.weights / self.peak


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    options = _options()
    results = list(_measured(options))
    after = {} if options.short else dict(_learned(options))
    text = report(results, after, options.seed)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "memory-model.md").write_text(text)
        raw = {"results": [asdict(r) for r in results], "learned": after}
        (options.out / "memory-model.json").write_text(json.dumps(raw, indent=1) + "\n")
    counted = [r for r in results if r.share >= SHARE]
    good = bool(counted) and all(abs(r.error) <= MOST for r in counted)
    return 0 if good and all(e[1] <= MOST_LEARNED for e in after.values()) else 1


def run(shape: Shape) -> Iterator[Result]:
    """The scenarios of one model, in a process of its own. Raises CalledProcessError."""
    command = [sys.executable, str(HERE / "memory_run.py")]
    given = json.dumps(asdict(shape))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        for line in process.stdout:
            yield Result(shape.kind, shape.name, **json.loads(line))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _measured(options: argparse.Namespace) -> Iterator[Result]:
    for kind in options.kinds:
        for n, shape in enumerate(shapes(kind, options.seed, options.shapes, short=options.short)):
            began = time.monotonic()
            say(f"{kind} {n + 1} of {options.shapes}: {shape.name}")
            for result in run(shape):
                say(
                    f"  {result.scenario}: {_mb(result.peak)} MB measured, "
                    f"{100 * result.error:+.1f} % predicted, "
                    f"{100 * result.computed_error:+.1f} % from files, share {result.share:.2f}"
                    f" ({time.monotonic() - began:.0f} s)"
                )
                yield result


def _learned(options: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    """By kind: mean errors of the predictions after 20 observations, without and with them.

    What is corrected is the prediction from the files, and half of it, and twice.
    """
    for kind in options.kinds:
        shape = shapes(kind, options.seed + 1, 1)[0]
        draw = random.Random(f"{options.seed}/{kind}/observations")
        shape = replace(shape, scenarios=observations(draw, LEARNED_FROM + ASKED_AFTER))
        say(f"{kind}: {LEARNED_FROM + ASKED_AFTER} observations of {shape.name}")
        results = list(run(shape))
        for factor in (1.0, 0.5, 2.0):
            yield f"{kind}, times {factor:g}", _errors(results, factor)


def _errors(results: list[Result], factor: float) -> list[float]:
    estimate = Estimate(used=0.0, weights_bytes=results[0].weights)
    for result in results[:LEARNED_FROM]:
        estimate = learned(estimate, int(factor * result.computed), result.peak)
    asked = results[LEARNED_FROM:]
    plain = [abs(factor * r.computed / r.peak - 1) for r in asked]
    better = [abs(estimate.expected(int(factor * r.computed)) / r.peak - 1) for r in asked]
    return [statistics.fmean(plain), statistics.fmean(better)]


def report(results: list[Result], after: dict[str, list[float]], seed: int) -> str:
    rows = [
        _row(kind, [r for r in results if r.kind == kind])
        for kind in dict.fromkeys(r.kind for r in results)
    ]
    lines = [
        "# Memory: predicted against measured",
        "",
        f"Seed {seed}. Errors are shares of the measured peak, weights included; only scenarios in "
        "which caches and",
        f"transients are at least {100 * SHARE:.0f} % of it are counted.",
        "",
        *table.grid(
            ["kind", "scenarios", "mean error", "worst low", "worst high", "from files: mean",
             "from files: worst"],
            rows,
        ),
        "",
    ]  # fmt: skip
    if after:
        lines += [
            f"After {LEARNED_FROM} observations, {ASKED_AFTER} more were predicted from the files "
            "(as they are, halved and doubled):",
            "",
            *table.grid(
                ["prediction", "mean error before", "mean error after"],
                [[name, f"{100 * a:.1f} %", f"{100 * b:.1f} %"] for name, (a, b) in after.items()],
            ),
            "",
        ]
    return "\n".join(lines)


def _row(kind: str, results: list[Result]) -> list[str]:
    counted = [r for r in results if r.share >= SHARE]
    if not counted:
        return [kind, "0", "", "", "", "", ""]
    errors = [r.error for r in counted]
    computed = [r.computed_error for r in counted]
    return [
        kind,
        f"{len(counted)} of {len(results)}",
        f"{100 * statistics.fmean(map(abs, errors)):.1f} %",
        f"{100 * min(errors):+.1f} %",
        f"{100 * max(errors):+.1f} %",
        f"{100 * statistics.fmean(map(abs, computed)):.1f} %",
        f"{100 * max(computed, key=abs):+.1f} %",
    ]


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shapes", type=int, default=6, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--short", action="store_true", help="shorter prompts, nothing learned")
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
