"""Dates for people, on the clock of whoever reads them."""

from __future__ import annotations

from datetime import datetime


def local(at: float) -> str:
    """Date and time."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock_of(at: float) -> str:
    """The time of day."""
    return local(at).partition(" ")[2]
