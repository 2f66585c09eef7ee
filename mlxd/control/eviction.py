"""The pure decision which models leave memory, for another or for a limit. It performs nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model as the decision sees it."""

    key: Hashable
    size_bytes: int
    in_use: bool
    last_used: float
    use_count: int
    preloaded: bool = False
    """Policy lists it: it goes after all that are not."""


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
    """What makes room for one more; what is in use stays.

    `available_bytes` None: memory could not be read, so only the count decides.
    """
    idle = _in_order(loaded)
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


def plan_trim(loaded: Sequence[Candidate], max_loaded: int) -> tuple[Hashable, ...]:
    """What leaves, in order, when no more than `max_loaded` may stay; what is in use stays."""
    excess = max(0, len(loaded) - max_loaded)
    return tuple(candidate.key for candidate in _in_order(loaded)[:excess])


def _in_order(loaded: Iterable[Candidate]) -> list[Candidate]:
    """What is idle: preloaded ones last, else least recently used first; use_count breaks ties."""
    idle = (candidate for candidate in loaded if not candidate.in_use)
    return sorted(idle, key=lambda c: (c.preloaded, c.last_used, c.use_count))
