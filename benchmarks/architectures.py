"""Whether every kind of model that mlx-lm has is served as mlx-lm alone runs it.

python benchmarks/architectures.py [--only NAME ...] [--jobs N] [--short]

Each is built small, with random float32 weights, in a process of its own: `architecture_shapes.py`
says how, `architectures_run.py` what is looked at. Exit status 1 when mlxd makes a mistake that
mlx-lm does not make.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.architecture_shapes import ARCHITECTURES, SHORT
from benchmarks.servers import HERE

Json = dict[str, Any]
NAME = "architectures"
CHECKS = (
    "load", "alone", "joined", "chunks", "again", "cancelled", "several", "scored", "vector",
    "kv_bits", "memory",
)  # fmt: skip
EXACT, ENGINE, WRONG = "exact", "engine", "wrong"
MOST_SECONDS = 600.0
"""For all checks of a model."""
_SIGNS = {EXACT: "=", ENGINE: "mlx-lm", "refused": "refused", WRONG: "WRONG", "": ""}


def main() -> int:
    return report.conduct(_options(), NAME, measure, problems, page)


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    """Of all, or of some: then what was found of the others before stays."""
    names = options.only or (SHORT if options.short else tuple(ARCHITECTURES))
    before = options.out / f"{NAME}.json"
    known = json.loads(before.read_text())["rows"] if options.only and before.exists() else []
    rows = {row["name"]: row for row in known}

    def run(name: str) -> Json:
        return _row(name, scratch / name)

    with ThreadPoolExecutor(options.jobs) as pool:
        for n, row in enumerate(pool.map(run, names), start=1):
            rows[row["name"]] = row
            print(f"{n} of {len(names)}: {_told(row)}", file=sys.stderr, flush=True)
    return {"rows": [rows[name] for name in ARCHITECTURES if name in rows]}


def _row(name: str, folder: Path) -> Json:
    began = time.monotonic()
    came = check(name, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return {"name": name, "seconds": round(time.monotonic() - began), "checks": came}


def _told(row: Json) -> str:
    found = {"name": row["name"], "rows": [row]}
    return f"{row['name']} ({row['seconds']} s) {'; '.join(problems(found))}"


def check(name: str, folder: Path) -> dict[str, Json]:
    """What came of each check; one that the process did not live to tell is wrong."""
    command = [sys.executable, str(HERE / "architectures_run.py")]
    given = json.dumps({"name": name, "folder": str(folder)})
    try:
        run = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"load": {"verdict": WRONG, "words": f"more than {MOST_SECONDS:.0f} s"}}
    told = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    came = {one.pop("check"): one for one in told}
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:]
        words = f"the process ended with {run.returncode}: {' '.join(last)}"
        next_check = next(c for c in CHECKS if c not in came)
        came[next_check] = {"verdict": WRONG, "words": words}
    return came


def problems(found: Json) -> list[str]:
    return [
        f"{row['name']}, {check}: {one['words']}"
        for row in found["rows"]
        for check, one in row["checks"].items()
        if one["verdict"] == WRONG
    ]


def page(found: Json) -> str:
    rows = [
        [row["name"], *(_cell(check, row["checks"].get(check, {})) for check in CHECKS)]
        for row in found["rows"]
    ]
    notes = [
        f"- {row['name']}, {check}: {one['words']}"
        for row in found["rows"]
        for check, one in row["checks"].items()
        if one["verdict"] == ENGINE and check != "memory"
    ]
    how = [
        "`=`: tokens and log-probabilities are those of mlx-lm for that prompt alone. `mlx-lm`: "
        "they are not, nor are mlx-lm's",
        "own where it does the same; below is how. `refused`: in words. Memory is what the loaded "
        "model's footprint and the",
        "one computed from its files say, against what was measured.",
    ]
    return report.page(
        "Every architecture",
        found,
        how,
        table.grid(["model_type", *CHECKS], rows),
        *([["What is mlx-lm's own:", "", *notes]] if notes else []),
    )


def _cell(check: str, one: Json) -> str:
    if check == "memory" and one.get("verdict") in (EXACT, ENGINE):
        return str(one["words"]).partition(", ")[2]
    return _SIGNS[one.get("verdict", "")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    report.add_options(parser)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="how many at one time")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
