"""The report as a picture: bars against raw, written as SVG by hand so that nothing is needed."""

from __future__ import annotations

from html import escape
from typing import Any

Json = dict[str, Any]
_PANELS = (
    ("tokens_per_second", "tokens/s against raw (more is better)"),
    ("cpu_ms_per_token", "CPU per token against raw (less is better)"),
    ("ttft_p99_ms", "TTFT p99 against raw (less is better)"),
)
_COLOURS = {
    "mlxd": ("#1d4ed8", "#93b4f5"),
    "mlx_lm.server": ("#b45309", "#f0c08a"),
    "vllm-mlx": ("#4d7c0f", "#b9d98c"),
}
_BAR, _SPACE, _HEIGHT, _TOP, _LEFT = 18, 26, 170, 46, 44
_MOST = 3.0
"""Longer bars are cut here; their figure is written on them."""


def svg(report: Json) -> str:
    """One panel per figure, one group of bars per number of streams."""
    rows = [row for row in report["rows"] if row["mode"] != "raw"]
    panels = [
        _panel(rows, figure, title, _TOP + i * (_HEIGHT + 70))
        for i, (figure, title) in enumerate(_PANELS)
    ]
    width = _LEFT + max((panel[1] for panel in panels), default=0) + 20
    width = max(width, 620)
    height = _TOP + len(panels) * (_HEIGHT + 70)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *_legend(rows),
            *(line for panel, _ in panels for line in panel),
            "</svg>\n",
        ]
    )


def _legend(rows: list[Json]) -> list[str]:
    lines: list[str] = []
    x = _LEFT
    for name, mode in dict.fromkeys((row["contestant"], row["mode"]) for row in rows):
        lines.append(f'<rect x="{x}" y="8" width="11" height="11" fill="{_colour(name, mode)}"/>')
        lines.append(f'<text x="{x + 15}" y="18">{escape(name)} {mode}</text>')
        x += 32 + 6 * (len(name) + len(mode))
    return lines


def _panel(rows: list[Json], figure: str, title: str, top: int) -> tuple[list[str], int]:
    """Its lines, and how wide it came out."""
    shown = [row for row in rows if row["ratio"][figure] is not None]
    highest = min(_MOST, max([1.2, *(row["ratio"][figure] for row in shown)]))
    lines = [f'<text x="{_LEFT}" y="{top + 4}" font-weight="bold">{title}</text>']
    bottom = top + _HEIGHT
    x = _LEFT + 10
    for streams in sorted({row["streams"] for row in shown}):
        group = [row for row in shown if row["streams"] == streams]
        lines.append(f'<text x="{x}" y="{bottom + 15}">{streams} streams</text>')
        for row in group:
            lines += _bar(row, row["ratio"][figure], x, bottom, highest)
            x += _BAR + 8
        x += _SPACE
    y = bottom - _length(1.0, highest)
    lines.append(f'<path d="M{_LEFT} {bottom}H{x}" stroke="#444"/>')
    lines.append(f'<path d="M{_LEFT} {y}H{x}" stroke="#444" stroke-dasharray="4 3"/>')
    lines.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">raw</text>')
    return lines, x - _LEFT


def _bar(row: Json, value: float, x: int, bottom: int, highest: float) -> list[str]:
    height = _length(min(value, highest), highest)
    colour = _colour(row["contestant"], row["mode"])
    return [
        f'<rect x="{x}" y="{bottom - height}" width="{_BAR}" height="{height}" fill="{colour}"/>',
        f'<text x="{x + _BAR // 2}" y="{bottom - height - 3}" text-anchor="middle" '
        f'font-size="9">{value:.2f}</text>',
    ]


def _length(value: float, highest: float) -> int:
    return round(value / highest * (_HEIGHT - 30))


def _colour(name: str, mode: str) -> str:
    whole, streamed = _COLOURS.get(name, ("#555", "#bbb"))
    return whole if mode == "whole" else streamed
