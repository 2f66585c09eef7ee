"""What was measured as bars: lines for a terminal, or an SVG.

That is written by hand, so that nothing is needed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Json = dict[str, Any]

_EIGHTHS = " ▏▎▍▌▋▊▉"
_WIDTH = 40
_BAR, _LINE, _LEFT, _LONGEST, _RIGHT = 14, 20, 130, 400, 90
_COLOURS = {"mlxd": "#1d4ed8", "raw": "#b45309"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One contestant's tokens per second."""

    label: str
    name: str
    rate: float


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one scale."""

    title: str
    bars: Sequence[Bar]

    @property
    def most(self) -> float:
        return max((bar.rate for bar in self.bars), default=0.0) or 1.0


def panels(report: Json) -> list[Panel]:
    """Of a report (rounds.py), those that hold something."""
    reading = [bar for row in report["prefill"] for bar in _bars(f"{row['prompt']} tokens", row)]
    answers = [bar for row in report["decode"] for bar in _bars(_streams(row), row)]
    both = (
        Panel("prompts read, tokens/s", reading),
        Panel("answers of all streams, tokens/s", answers),
    )
    return [panel for panel in both if panel.bars]


def lines(report: Json) -> Iterator[str]:
    """For a terminal."""
    for panel in panels(report):
        yield panel.title
        labels = max(len(bar.label) for bar in panel.bars)
        names = max(len(bar.name) for bar in panel.bars)
        for bar in panel.bars:
            head = f"  {bar.label.rjust(labels)}  {bar.name.ljust(names)}"
            yield f"{head}  {_length(bar.rate / panel.most)} {bar.rate:.0f}"


def svg(report: Json) -> str:
    """One panel above the other."""
    y, drawn = 20, []
    for panel in panels(report):
        drawn.append(f'<text x="10" y="{y}" font-weight="bold">{escape(panel.title)}</text>')
        for bar in panel.bars:
            y += _LINE
            drawn += _drawn(bar, bar.rate / panel.most, y)
        y += 2 * _LINE
    width = _LEFT + _LONGEST + _RIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
            'font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{y}" fill="#fff"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _bars(label: str, row: Json) -> Iterator[Bar]:
    yield Bar(label, "mlxd", row["tokens_per_second"])
    if "raw" in row:
        yield Bar(label, "raw", row["raw"]["tokens_per_second"])


def _streams(row: Json) -> str:
    return f"{row['streams']} stream{'s' if row['streams'] > 1 else ''}"


def _length(share: float) -> str:
    """A bar to an eighth of a character; nothing is too little to be seen."""
    eighths = max(1, round(share * _WIDTH * 8))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _drawn(bar: Bar, share: float, y: int) -> list[str]:
    length, text = max(1, round(share * _LONGEST)), y + _BAR - 3
    who = escape(f"{bar.label}, {bar.name}")
    return [
        f'<text x="{_LEFT - 8}" y="{text}" text-anchor="end">{who}</text>',
        f'<rect x="{_LEFT}" y="{y}" width="{length}" height="{_BAR}"'
        f' fill="{_COLOURS.get(bar.name, "#555")}"/>',
        f'<text x="{_LEFT + length + 6}" y="{text}">{bar.rate:.0f}</text>',
    ]
