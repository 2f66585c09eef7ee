"""Shapes of which nothing may stand beside what they name."""

from __future__ import annotations

from typing import Any


def closed(shape: Any) -> Any:
    """The same JSON Schema: an object has the properties that are named, and no others."""
    if isinstance(shape, list):
        return [closed(one) for one in shape]
    if not isinstance(shape, dict):
        return shape
    made = {name: closed(value) for name, value in shape.items()}
    if isinstance(made.get("properties"), dict) and "type" in made:
        made.setdefault("additionalProperties", False)
    return made
