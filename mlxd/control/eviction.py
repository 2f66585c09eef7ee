"""The pure decision which models leave memory so that another fits. It performs nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model as the decision sees it."""

    key: Hashable
    size_bytes: int
    in_use: bool
    last_used: float
    use_count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to unload first, in order; `obstacle` says what is still in the way after that."""

    victims: tuple[Hashable, ...]
    obstacle: str = ""
    """Empty, `count` or `memory`."""


def plan_eviction(
    loaded: Sequence[Candidate],
    *,
    needed_bytes: int,
    available_bytes: int | None,
    max_loaded: int | None,
) -> Plan:
    """Least recently used first; use_count breaks ties; what is in use stays.

    `available_bytes` None: memory could not be read, so only the count decides.
    """
    idle = sorted((c for c in loaded if not c.in_use), key=lambda c: (c.last_used, c.use_count))
    victims: list[Candidate] = []

    def obstacle() -> str:
        if max_loaded is not None and len(loaded) - len(victims) >= max_loaded:
            return "count"
        freed = sum(victim.size_bytes for victim in victims)
        if available_bytes is not None and needed_bytes > available_bytes + freed:
            return "memory"
        return ""

    while (problem := obstacle()) and idle:
        victims.append(idle.pop(0))
    if problem:
        return Plan((), problem)
    return Plan(tuple(victim.key for victim in victims))
