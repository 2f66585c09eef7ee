"""Vectors, from the bytes that they come in."""

from __future__ import annotations

import base64
import math
import sys
from array import array


def floats(vector: bytes) -> array[float]:
    """The numbers of a vector in float32, the low end first."""
    values = array("f")
    values.frombytes(vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def unit(vector: bytes, dimensions: int | None = None) -> array[float]:
    """The first `dimensions` numbers of a vector, made one long; all of them where it has fewer."""
    values = floats(vector)[:dimensions]
    length = math.hypot(*values)
    return array("f", [value / length for value in values]) if length else values


def in_base64(values: array[float]) -> str:
    """Of their bytes, the low end first."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()
