"""Counts in words: 1 request, 2 requests."""

from __future__ import annotations


def plural(amount: float, one: str, many: str = "") -> str:
    """The number and what it counts; `many`: where that is not `one` with an s."""
    number = f"{amount:g}" if amount % 1 else f"{int(amount)}"
    return f"{number} {form(amount, one, many)}"


def form(amount: float, one: str, many: str = "") -> str:
    """The word that goes with a number, such as `waits` or `wait`."""
    return one if amount == 1 else many or f"{one}s"
