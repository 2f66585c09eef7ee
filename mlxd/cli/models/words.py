"""Numbers as people read them, and columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def size(amount: float) -> str:
    """19.3 GiB, 450 MiB, 12 KiB, 7 B."""
    for unit, name in _UNITS:
        if amount >= unit:
            return f"{amount / unit:.1f} {name}" if unit == 2**30 else f"{amount / unit:.0f} {name}"
    return f"{amount:.0f} B"


def duration(seconds: float) -> str:
    """45 s, 4 min 30 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each column as wide as its widest entry, but for the last."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        *padded, last = (entry.ljust(width) for entry, width in zip(row, widths, strict=True))
        yield "  ".join([*padded, last.rstrip()]).rstrip()
