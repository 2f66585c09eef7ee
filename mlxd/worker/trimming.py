"""Caches out of which the last tokens can be taken again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxd.worker.stand_ins import leaves

_ALWAYS = 1 << 30


def room(caches: Sequence[Any]) -> int:
    """How many tokens may be written to these layers that can then be taken out again."""
    return min((_room(layer) for layer in leaves(caches)), default=_ALWAYS)


def _room(layer: Any) -> int:
    """A window is trimmed only while it holds all that came."""
    if not layer.is_trimmable():
        return 0
    window = getattr(layer, "max_size", 0)
    return max(0, window - layer.size() - 1) if window else _ALWAYS
