"""Thousands of made-up requests to every operation, each answer held to /openapi.json.

python benchmarks/contract.py [--cases 2000] [--minutes N] [--start 0] [--only TEXT] [--short]

A daemon of its own is asked, with small models, a state that is thrown away, and no hub. What is
asked follows from --start alone. Exit status 1 where an answer is not what the document says.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from tests.contract.holding import Contract
from tests.contract.throwaway import throwaway
from tests.support.daemon import Daemon

Json = dict[str, Any]
CASES, SHORT = 2000, 3
AT_ONCE = 100
"""Cases of one operation in a row."""
_CORES = os.cpu_count() or 1
_own: list[Contract] = []
"""The one of this process, where it asks."""


def main() -> int:
    options = _options()
    found = report.begun() | {"cases": options.cases, "start": options.start, "processes": _CORES}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, throwaway(Path(folder)) as running:
        labels = sorted(one for one in Contract(running).operations if options.only in one)
        with _processes(running) as processes:
            asked = _ask(labels, options, processes)
    found["rows"] = [_row(label, asked[label]) for label in labels]
    found["seconds"] = round(time.monotonic() - began, 1)
    found["problems"] = [one for label in labels for one in asked[label].broken]
    return report.publish(options, "contract", found, _page(found))


@dataclass(slots=True)
class Asked:
    """Of one operation, so far."""

    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    over: bool = False
    """There are no more cases of it."""


def _ask(labels: list[str], options: argparse.Namespace, processes: Pool) -> dict[str, Asked]:
    """As many of each operation before there are more of any; ends early where its time is up."""
    asked = {label: Asked() for label in labels}
    until = time.monotonic() + 60.0 * options.minutes
    for first in range(0, options.cases, AT_ONCE):
        count = min(AT_ONCE, options.cases - first)
        batches = [(one, count, options.start + first) for one in labels if not asked[one].over]
        for label, statuses, broken in processes.imap_unordered(_batch, batches):
            one = asked[label]
            one.statuses += statuses
            one.broken += broken
            one.over = statuses.total() < count
            say(f"from {first}, {label}: {statuses.total()} asked, {len(broken)} broken")
        if time.monotonic() >= until:
            break
    return asked


@contextmanager
def _processes(running: Daemon) -> Iterator[Pool]:
    """Making a case up takes longer than its answer."""
    with multiprocessing.get_context("fork").Pool(_CORES, _begin, (running,)) as pool:
        yield pool


def _begin(running: Daemon) -> None:
    own = httpx.Client(base_url=running.url, timeout=60)  # a connection is not for two
    _own[:] = [Contract(replace(running, http=own))]


def _batch(batch: tuple[str, int, int]) -> tuple[str, Counter[int], list[str]]:
    """In a process of its own: an operation, what its answers were, and what is broken."""
    (label, count, start), [contract] = batch, _own
    contract.statuses[label].clear()
    broken = [str(one) for one in contract.cases(label, count, start)]
    return label, Counter(contract.statuses[label]), broken


def _row(label: str, asked: Asked) -> Json:
    statuses = {str(status): asked.statuses[status] for status in sorted(asked.statuses)}
    return {"operation": label, "asked": asked.statuses.total(), "statuses": statuses,
            "broken": len(asked.broken)}  # fmt: skip


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
    parser.add_argument("--minutes", type=float, default=600.0, help="and not much longer")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="operations with this in their names")
    options = parser.parse_args()
    options.cases = SHORT if options.short else options.cases
    return options


if __name__ == "__main__":
    sys.exit(main())
