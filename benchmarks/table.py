"""The report in Markdown: what was measured, on what, and one table per number of streams."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from mlxd.core.machine import processor

Json = dict[str, Any]
_COLUMNS = [
    "contestant", "answer", "tokens/s", "to raw", "CPU ms/token", "to raw", "TTFT p50 ms",
    "to raw", "TTFT p99 ms", "to raw", "gap p99 ms", "records/token", "held", "held longer",
]  # fmt: skip


def machine() -> Json:
    """What it ran on, without names."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "commit": _commit(),
    }


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def markdown(report: Json) -> str:
    """The whole page."""
    lines = [
        f"# Throughput, {report['shape']} model",
        "",
        f"{report['date']}, {words(report['machine'])}.",
        f"{report['parameters'] / 1e6:.1f} M parameters, prompts of {report['prompt_tokens']}"
        f" tokens, answers of {report['tokens']}, {report['rounds']} rounds, API {report['api']};"
        f" load average {report['load_average']} before.",
        "Compared: " + ", ".join(f"{n} {v}" for n, v in report["versions"].items()) + ".",
        "Of a core while the others are measured: "
        + ", ".join(f"{n} {share}%" for n, share in report["idle_core_percent"].items())
        + ".",
        *(f"Left out: {reason}" for reason in report["left_out"]),
    ]
    for streams in sorted({row["streams"] for row in report["rows"]}):
        rows = [row for row in report["rows"] if row["streams"] == streams]
        lines += ["", f"## {streams} stream{'s' if streams > 1 else ''}", ""]
        lines += grid(_COLUMNS, [_cells(row) for row in rows])
    return "\n".join(lines) + "\n"


def grid(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; the first column is text."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    table = [header, rule, *rows]
    return [
        "| " + " | ".join(_pad(i, cell, widths[i]) for i, cell in enumerate(row)) + " |"
        for row in table
    ]


def _pad(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def _cells(row: Json) -> list[str]:
    ratio = row["ratio"]
    return [
        row["contestant"],
        row["mode"],
        _number(row["tokens_per_second"], 0),
        _number(ratio["tokens_per_second"], 2),
        _number(row["cpu_ms_per_token"], 3),
        _number(ratio["cpu_ms_per_token"], 2),
        _number(row["ttft_p50_ms"], 1),
        _number(ratio["ttft_p50_ms"], 2),
        _number(row["ttft_p99_ms"], 1),
        _number(ratio["ttft_p99_ms"], 2),
        _number(row["gap_p99_ms"], 1),
        _number(row["records_per_token"], 3),
        _share(row["held"]),
        _share(row["held_longer"]),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def words(on: Json) -> str:
    """The machine in a sentence."""
    return (
        f"{on['cores']} cores of {on['processor']}, {on['memory_gib']} GiB, {on['system']}"
        f" {on['architecture']}, Python {on['python']}, mlx {on['mlx']}, mlx-lm {on['mlx_lm']},"
        f" commit {on['commit']}"
    )


def _commit() -> str:
    """Of this checkout, with a + where something in it differs; empty outside of one."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        [*git, "status", "--porcelain", "mlxd"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
