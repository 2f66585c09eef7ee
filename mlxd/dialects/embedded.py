"""JSON that stands in a string of JSON: no bound of the body's holds for it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from mlxd.dialects.fields import Json
from mlxd.dialects.numbers import levels_of, shorten_integers

MOST_VALUES = 200_000
_MOST_LEVELS = 64
_LONG_NUMBER = re.compile("[0-9]{19}")


def values_in(text: str) -> int:
    """At least as many as parsing it would make."""
    return sum(map(text.count, ",:[{"))


def decode_object(text: str) -> Json | None:
    """None where it is no JSON object, or a deeper one than is read."""
    try:
        value: Json = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if sum(1 for _ in levels_of(value)) > _MOST_LEVELS:
        return None
    if _LONG_NUMBER.search(text):
        shorten_integers(value)
    return value


def decode_text(text: str) -> str | None:
    """None where it is no JSON string."""
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeError):
        return None
