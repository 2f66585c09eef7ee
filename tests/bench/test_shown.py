"""A report as people see it: table, bars, picture."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from mlxd.bench import plot
from mlxd.cli.bench import table

READ = {"tokens_per_second": 1000.0, "ttft_p50_ms": 512.0}
TIMES = {"ttft_p50_ms": 12.34, "ttft_p99_ms": 123.4, "gap_p50_ms": 5.0, "gap_p99_ms": 9.0}
ALONE: dict[str, Any] = {
    "rounds": 3,
    "prefill": [{"prompt": 512, **READ}],
    "decode": [
        {"streams": 1, "tokens_per_second": 50.0, **TIMES},
        {"streams": 8, "tokens_per_second": 200.0, **TIMES},
    ],
}


def beside_raw() -> dict[str, Any]:
    def row(one: dict[str, Any]) -> dict[str, Any]:
        figures = {key: one[key] for key in one if key not in {"prompt", "streams"}}
        ratio = dict.fromkeys(figures, 0.5)
        return {**one, "raw": {key: 2 * value for key, value in figures.items()}, "ratio": ratio}

    return {**ALONE, **{key: [row(one) for one in ALONE[key]] for key in ("prefill", "decode")}}


def test_a_table_has_what_was_measured() -> None:
    lines = [*table.lines(ALONE)]
    assert lines[1].split("  ")[0] == "512 tokens"
    assert "1000 tokens/s" in lines[1]
    assert lines[1].endswith("512 ms")
    assert lines[-1].split() == [
        "8", "200", "tokens/s", "12.3", "ms", "123", "ms", "5.0", "ms", "9.0", "ms",
    ]  # fmt: skip


def test_beside_raw_it_has_ratios() -> None:
    lines = [*table.lines(beside_raw())]
    assert lines[0].split() == ["prompt", "read", "at", "raw", "ratio", "read", "within"]
    assert "2000 tokens/s" in lines[1]
    assert "  0.50  " in lines[1]
    assert "12.3 ms (0.50)" in lines[-1]


def test_bars_are_as_long_as_rates_are_high() -> None:
    lines = [*plot.lines(ALONE)]
    one, eight = lines[-2:]
    assert "8 streams" in eight
    assert one.count("█") * 4 == eight.count("█")
    assert eight.endswith(" 200")
    assert len([*plot.lines(beside_raw())]) == len(lines) + 3


def test_a_picture_has_a_bar_for_each_rate() -> None:
    root = ElementTree.fromstring(plot.svg(beside_raw()))
    bars = [one for one in root if one.tag.endswith("rect")][1:]
    assert len(bars) == 6
    widths = sorted({int(bar.attrib["width"]) for bar in bars})
    assert widths == [50, 100, 200, 400]
