"""The comparison as a picture: bars before and after, written as SVG by hand so that nothing is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape

from mlxd.simulate.traffic.report import EVERY, Comparison, Figures, seconds

_Row = tuple[tuple[str, str], Figures, Figures]
_PANELS: tuple[tuple[str, Callable[[Figures], float | None], Callable[[float], str]], ...] = (
    ("wait p99", lambda figures: figures.wait_p99, seconds),
    ("time to first token p99", lambda figures: figures.ttft_p99, seconds),
    ("refused (429, 503)", lambda figures: figures.refused_share, lambda share: f"{share:.1%}"),
)
_BEFORE, _AFTER = "#94a3b8", "#1d4ed8"
_WIDTH, _LEFT, _BAR, _ROW, _TOP, _PANEL = 860, 190, 12, 34, 54, 46
_MOST = 520
"""Length of the longest bar."""


def svg(comparison: Comparison) -> str:
    """One panel per figure, two bars per tenant and class."""
    rows = comparison.rows()
    height = _TOP + len(_PANELS) * (_PANEL + _ROW * len(rows))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        *_legend(comparison),
    ]
    for number, (title, figure, shown) in enumerate(_PANELS):
        top = _TOP + number * (_PANEL + _ROW * len(rows))
        lines += _panel(rows, title, figure, shown, top)
    return "\n".join([*lines, "</svg>\n"])


def _legend(comparison: Comparison) -> Iterator[str]:
    sides = (("before", comparison.before.name, _BEFORE), ("after", comparison.after.name, _AFTER))
    for number, (word, name, colour) in enumerate(sides):
        y = 10 + 16 * number
        yield f'<rect x="12" y="{y}" width="11" height="11" fill="{colour}"/>'
        yield f'<text x="29" y="{y + 10}">{word}: {escape(name)}</text>'


def _panel(
    rows: list[_Row],
    title: str,
    figure: Callable[[Figures], float | None],
    shown: Callable[[float], str],
    top: int,
) -> Iterator[str]:
    values = [figure(side) or 0.0 for _, before, after in rows for side in (before, after)]
    most = max(values) or 1.0
    yield f'<text x="12" y="{top + 14}" font-weight="bold">{title}</text>'
    for number, (group, before, after) in enumerate(rows):
        y = top + 26 + number * _ROW
        name = group[0] if group[1] == EVERY else " / ".join(group)
        yield f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
        yield from _bar(figure(before), most, shown, y, _BEFORE)
        yield from _bar(figure(after), most, shown, y + _BAR, _AFTER)


def _bar(
    value: float | None, most: float, shown: Callable[[float], str], y: int, colour: str
) -> Iterator[str]:
    length = round((value or 0.0) / most * _MOST)
    text = shown(value) if value is not None else "-"
    yield f'<rect x="{_LEFT}" y="{y}" width="{length}" height="{_BAR - 2}" fill="{colour}"/>'
    yield f'<text x="{_LEFT + length + 5}" y="{y + 9}" font-size="9">{text}</text>'
