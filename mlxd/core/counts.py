"""Counts in words, such as 2 requests; and as somebody wrote one."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_LINES = 10


def plural(amount: float, one: str, many: str = "") -> str:
    """The number and what it counts; `many`: where that is not `one` with an s."""
    number = f"{amount:g}" if amount % 1 else f"{int(amount)}"
    return f"{number} {form(amount, one, many)}"


def form(amount: float, one: str, many: str = "") -> str:
    """The word that goes with a number, such as `waits` or `wait`."""
    return one if amount == 1 else many or f"{one}s"


def short(amount: int) -> str:
    """32.8B, 350.0M, 107.2K."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if amount >= size:
            return f"{amount / size:.1f}{unit}"
    return str(amount)


def some(lines: Iterable[str], more: str) -> list[str]:
    """The first few of what may be hundreds, and behind them `more`, with how many are left for its
    `{}`.
    """
    found = list(lines)
    left = len(found) - _MOST_LINES
    return found if left <= 0 else [*found[:_MOST_LINES], more.format(left)]


def whole(text: str, digits: int) -> int | None:
    """The count that a text is, of at most so many digits; None: it is none."""
    fits = text.isascii() and text.isdecimal() and len(text) <= digits
    return int(text) if fits else None
