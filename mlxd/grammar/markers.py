"""How a model that writes its tool calls as JSON marks them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Markers:
    """Around each call. A marker that is one token of the model is said by its id."""

    start: str
    end: str
    start_token: int | None = None
    end_token: int | None = None
