"""Counts in words, such as 2 requests; and as somebody wrote one."""

from __future__ import annotations


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


def whole(text: str, digits: int) -> int | None:
    """The count that a text is, of at most so many digits; None: it is none."""
    fits = text.isascii() and text.isdecimal() and len(text) <= digits
    return int(text) if fits else None
