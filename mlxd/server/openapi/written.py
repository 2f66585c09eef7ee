"""The document as it stands in the repository: what fits is on one line."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 120


def written(value: Any, depth: int = 0) -> str:
    """`depth`: how far in it stands, in spaces."""
    line = json.dumps(value, ensure_ascii=False)
    if depth + len(line) <= WIDTH or not _divides(value):
        return line
    inner = depth + 1
    if isinstance(value, list):
        parts = [written(one, inner) for one in value]
        return _block("[", parts, "]", depth)
    named = ((json.dumps(name, ensure_ascii=False), one) for name, one in value.items())
    return _block("{", [f"{name}: {written(one, inner)}" for name, one in named], "}", depth)


def _divides(value: Any) -> bool:
    """A list of words stays whole."""
    if isinstance(value, list):
        return any(isinstance(one, dict | list) for one in value)
    return isinstance(value, dict) and bool(value)


def _block(opening: str, parts: list[str], closing: str, depth: int) -> str:
    lines = ",\n".join(" " * (depth + 1) + part for part in parts)
    return f"{opening}\n{lines}\n{' ' * depth}{closing}"
