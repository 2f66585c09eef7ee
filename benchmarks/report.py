"""How a program says what it found: a page and JSON in a folder, one of them on standard output."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.servers import HERE

Json = dict[str, Any]
LEFT_OUT = 3
"""The exit status where the system cannot do what would be measured."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the page")
    parser.add_argument("--short", action="store_true", help="a little of each, in seconds")


def begun() -> Json:
    """Taken before the run: another commit may follow before the end."""
    return {"date": table.today(), "machine": table.machine()}


def conduct(
    options: argparse.Namespace,
    name: str,
    measure: Callable[[argparse.Namespace, Path], Json],
    problems: Callable[[Json], list[str]],
    page: Callable[[Json], str],
) -> int:
    """A whole program, in a folder that goes with it: measure, judge and publish. Returns its exit
    status.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemon would stay behind
    found = begun()
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
        found |= measure(options, Path(scratch))
    found["problems"] = problems(found)
    return publish(options, name, found, page(found))


def publish(options: argparse.Namespace, name: str, found: Json, page: str) -> int:
    """Write and print it; returns the exit status, which is 1 where something wanted is missing."""
    whole = json.dumps(found, indent=1) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.md").write_text(page)
    (options.out / f"{name}.json").write_text(whole)
    print(whole if options.json else page, end="" if options.json else "\n")
    return 1 if found["problems"] else 0


def page(title: str, found: Json, *parts: list[str]) -> str:
    """Parts are separated by a blank line; what is wrong comes last."""
    lines = [f"# {title}", "", f"{found['date']}, {table.words(found['machine'])}."]
    for part in parts:
        lines += ["", *part]
    if found["problems"]:
        lines += ["", "What is wrong:", "", *(f"- {text}" for text in found["problems"][:20])]
    return "\n".join(lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"
