"""How soon a request asks to be served, and for whom it asks: fields that every dialect has."""

from __future__ import annotations

from mlxd.core.caller import PRIORITIES, Priority
from mlxd.dialects.fields import Fields

_EXPECTED = f"class ({', '.join(PRIORITIES)}) or integer"
TIERS: dict[str, Priority] = {"priority": "high", "fast": "high", "flex": "low"}
"""OpenAI's; all others leave it open."""
_LONGEST_USER = 256


def priority(fields: Fields) -> Priority | None:
    """mlxd's own `priority`: a class, or vLLM's integer, of which the lower goes sooner."""
    value = fields.get("priority")
    if value is None:
        return None
    if isinstance(value, str):
        for known in PRIORITIES:
            if value.strip().lower() == known:
                return known
    if isinstance(value, bool) or not isinstance(value, int):
        raise fields.wrong("priority", _EXPECTED)
    return "medium" if value == 0 else "high" if value < 0 else "low"


def priority_or_tier(fields: Fields) -> Priority | None:
    """The same, and where it says nothing, OpenAI's `service_tier`."""
    tier = fields.get("service_tier")
    said = priority(fields)
    return said or (TIERS.get(tier) if isinstance(tier, str) else None)


def user(fields: Fields, *names: str) -> str:
    """The first of these fields that names somebody; what is no text names nobody."""
    values = (fields.get(name) for name in names)
    said = (value for value in values if isinstance(value, str) and value)
    return next(said, "")[:_LONGEST_USER]
