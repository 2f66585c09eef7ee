"""What two texts begin with."""

from __future__ import annotations

from typing import AnyStr


def common(one: AnyStr, other: AnyStr) -> int:
    """How many characters, or bytes, both begin with; by halves, as the machine compares them."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
