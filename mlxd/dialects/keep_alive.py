"""`keep_alive` in every form that clients send: seconds, or a duration as Go writes it."""

from __future__ import annotations

import math
import re

from mlxd.core.errors import InvalidRequest
from mlxd.dialects.fields import Fields

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]*)")
_LONGEST_TEXT = 64
_FOREVER = 2.0**63 / 1e9
"""Go's durations end here."""


def keep_alive(fields: Fields) -> float | None:
    """Seconds; inf for ever (anything negative); None when not said."""
    value = fields.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise InvalidRequest(str(error), param=fields.path("keep_alive")) from error
    else:
        seconds = fields.number("keep_alive", expected="number or duration string") or 0.0
    return math.inf if seconds < 0 or seconds >= _FOREVER else seconds


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1h30m`. Raises ValueError in Go's words."""
    shown = f'"{text[:_LONGEST_TEXT]}"'
    unsigned = text[1:] if text[:1] in ("-", "+") else text
    if unsigned == "0":
        return 0.0
    if not unsigned or len(text) > _LONGEST_TEXT:
        raise ValueError(f"time: invalid duration {shown}")
    total, end = 0.0, 0
    while end < len(unsigned):
        part = _PART.match(unsigned, end)
        if part is None:
            raise ValueError(f"time: invalid duration {shown}")
        amount, unit = part.groups()
        if not unit:
            raise ValueError(f"time: missing unit in duration {shown}")
        if unit not in _UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration {shown}')
        total += float(amount) * _UNITS[unit]
        end = part.end()
    return -total if text.startswith("-") else total
