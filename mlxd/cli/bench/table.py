"""A bench's report in columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxd.cli.models.words import columns

Json = dict[str, Any]


def lines(report: Json) -> Iterator[str]:
    """For people. Ratios are to raw, where that was measured."""
    compared = any("raw" in row for row in report["decode"])
    beside = ["raw", "ratio"] if compared else []
    yield from columns(
        [
            ["prompt", "read at", *beside, "read within"],
            *([_prompt(row), *_rates(row), _ms(row["ttft_p50_ms"])] for row in report["prefill"]),
        ]
    )
    yield ""
    yield from columns(
        [
            ["streams", "answer at", *beside, "first token p50", "p99", "gap p50", "p99"],
            *([str(row["streams"]), *_rates(row), *_times(row)] for row in report["decode"]),
        ]
    )


def _prompt(row: Json) -> str:
    return f"{row['prompt']} tokens"


def _rates(row: Json) -> Iterator[str]:
    yield f"{row['tokens_per_second']:.0f} tokens/s"
    if "raw" in row:
        yield f"{row['raw']['tokens_per_second']:.0f} tokens/s"
        yield f"{row['ratio']['tokens_per_second']:.2f}"


def _times(row: Json) -> Iterator[str]:
    for key in ("ttft_p50_ms", "ttft_p99_ms", "gap_p50_ms", "gap_p99_ms"):
        ratio = row.get("ratio", {}).get(key)
        yield _ms(row[key]) + (f" ({ratio:.2f})" if ratio is not None else "")


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"
