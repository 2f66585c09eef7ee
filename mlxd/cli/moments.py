"""Dates for people, on the clock of whoever reads them."""

from __future__ import annotations

import time


def local(at: float) -> str:
    """Date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def clock_of(at: float) -> str:
    """The time of day."""
    return local(at).partition(" ")[2]
