"""The report of a proof, in Markdown: no prompts, no keys, no folders of anybody."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mlxd.cli.moments import clock_of
from mlxd.cli.prove.proof import Seen
from mlxd.cli.prove.step import Step, shortened, without_home
from mlxd.core import versions
from mlxd.core.lines import one_line
from mlxd.core.machine import machine

Json = dict[str, Any]

_PAGE = "docs/macos.md"


def report(
    model: str,
    seen: Seen,
    steps: Sequence[Step],
    claims: Sequence[Step],
    *,
    own: bool,
    proved: bool,
) -> str:
    """Of what was seen with `model`. `own`: the daemon was started for it."""
    parts = (
        _head(model, own=own, proved=proved),
        _steps("Steps", steps),
        _figures(seen.figures),
        _steps(f"Claims of {_PAGE}", claims),
        _events(seen.events),
        ["## Last words of the killed worker", "", *_block(seen.stderr or "(none)")],
    )
    return without_home("\n".join(line for part in parts for line in (*part, "")))


def _head(model: str, *, own: bool, proved: bool) -> Iterator[str]:
    yield f"# mlxd {'is proved' if proved else 'is not proved'} here"
    yield ""
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(),
        "system": platform.platform(),
        **versions.everything(),
        "model": model,
        "daemon": "one of the proof's own" if own else "the one that ran",
    }
    yield from (f"- {name}: {_cell(fact)}" for name, fact in facts.items())


def _steps(title: str, steps: Sequence[Step]) -> Iterator[str]:
    yield from (f"## {title}", "", "| what | result | |", "|---|---|---|")
    for step in steps:
        outcome = step.outcome
        yield f"| {_cell(step.name)} | {outcome.verdict} | {_cell(outcome.words)} |"
    for step in steps:
        if step.outcome.output:
            yield from ("", f"{_cell(step.name)}:", "", *_block(step.outcome.output))


def _figures(figures: dict[str, str]) -> Iterator[str]:
    yield from ("## Figures", "", "| | |", "|---|---|")
    yield from (f"| {name} | {_cell(figure)} |" for name, figure in figures.items())


def _events(events: Sequence[Json]) -> Iterator[str]:
    yield from ("## What the daemon decided meanwhile", "")
    lines = [
        f"{clock_of(one['at'])}  {one['type']:<12}  {one_line(one['message'])}" for one in events
    ]
    yield from ("```", *(lines or ["(nothing)"]), "```")


def _block(text: str) -> Iterator[str]:
    yield from ("```", *shortened(text).replace("```", "'''").splitlines(), "```")


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")
