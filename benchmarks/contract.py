"""Thousands of made-up requests to every operation, each answer held to /openapi.json.

python benchmarks/contract.py [--cases 2000] [--start 0] [--only TEXT] [--short]

A daemon of its own is asked, with small models, a state that is thrown away, and no hub. What is
asked follows from --start alone. Exit status 1 where an answer is not what the document says.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from tests.contract.holding import Broken, Contract
from tests.contract.throwaway import throwaway

Json = dict[str, Any]
CASES, SHORT = 2000, 3
AT_ONCE = 100
"""Cases between two words about how far it is."""
SHOWN = 3
"""Of what is broken in one operation."""


def main() -> int:
    options = _options()
    found = report.begun() | {"cases": options.cases, "start": options.start, "rows": []}
    broken: list[Broken] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, throwaway(Path(folder)) as running:
        contract = Contract(running)
        labels = sorted(label for label in contract.operations if options.only in label)
        for number, label in enumerate(labels, start=1):
            broken += (these := _asked(contract, label, options, f"{number}/{len(labels)}"))
            found["rows"].append(_row(contract, label, these))
    found["seconds"] = round(time.monotonic() - began, 1)
    found["problems"] = [str(one) for one in broken]
    return report.publish(options, "contract", found, _page(found))


def _asked(contract: Contract, label: str, options: argparse.Namespace, place: str) -> list[Broken]:
    broken: list[Broken] = []
    for first in range(0, options.cases, AT_ONCE):
        count = min(AT_ONCE, options.cases - first)
        broken += contract.cases(label, count, options.start + first)
        done = sum(contract.statuses[label].values())
        say(f"{place} {label}: {done} asked, {len(broken)} broken")
        if done < count:  # there are no more of it
            break
    return broken


def _row(contract: Contract, label: str, broken: list[Broken]) -> Json:
    statuses = contract.statuses[label]
    asked = {str(status): statuses[status] for status in sorted(statuses)}
    return {"operation": label, "asked": sum(statuses.values()), "statuses": asked,
            "broken": len(broken)}  # fmt: skip


def _page(found: Json) -> str:
    asked = sum(row["asked"] for row in found["rows"])
    head = [
        f"{len(found['rows'])} operations, {asked} requests in {found['seconds']:.0f} s: at most"
        f" {found['cases']} of each, from seed {found['start']}; some have no more.",
        f"Answers that the document does not promise: {len(found['problems'])}.",
    ]
    rows = [_cells(row) for row in found["rows"]]
    grid = table.grid(["operation", "requests", "answers", "broken"], rows)
    return report.page("The contract", found, head, grid)


def _cells(row: Json) -> list[str]:
    told = ", ".join(f"{count} x {status}" for status, count in row["statuses"].items())
    return [row["operation"], str(row["asked"]), told, str(row["broken"])]


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    report.add_options(parser)
    parser.add_argument("--cases", type=int, default=CASES, help="of each operation")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="operations with this in their names")
    options = parser.parse_args()
    options.cases = SHORT if options.short else options.cases
    return options


if __name__ == "__main__":
    sys.exit(main())
