"""Bytes in words, for messages to people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def spoken(size: int) -> str:
    """Three significant digits at most, in powers of 1024: `3.25 GiB`, `512 MiB`."""
    value = float(size)
    for unit in _UNITS[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.0f} {_UNITS[-1]}" if value >= 99.5 else f"{value:.3g} {_UNITS[-1]}"
