"""How hard a model is to think, in the words of OpenAI's clients."""

from __future__ import annotations

from mlxd.core.errors import InvalidRequest
from mlxd.dialects.fields import Fields

EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "ultra": "max",
    "max": "max",
}


def read_effort(fields: Fields, name: str) -> bool | str | None:
    """As `GenerationRequest.think` has it. Raises InvalidRequest."""
    effort = fields.text(name)
    if effort is None:
        return None
    if effort not in EFFORTS:
        path = fields.path(name)
        raise InvalidRequest(f"{path} must be one of {', '.join(EFFORTS)}", param=path)
    return EFFORTS[effort]
