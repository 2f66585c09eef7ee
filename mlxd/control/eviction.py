"""The pure decision which models leave memory, for another or for a limit. It performs nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Obstacle = Literal["", "count", "weights", "memory", "limit"]
"""What is in the way: `models.max_loaded`, `models.max_loaded_bytes`, what is free, or what one
worker may take."""
Priority = Literal["low", "normal", "high"]
_RANKS: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2}


@dataclass(frozen=True, slots=True)
class Protection:
    """How long models are left alone, in seconds."""

    after_use: float = 0.0
    after_load: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model in memory, or on its way there, as the decision sees it."""

    key: Hashable
    frees: int
    """Bytes that others may have once it is gone."""
    weights: int = 0
    in_use: bool = False
    """Leased, loading, or for another reason not to be evicted for this."""
    last_used: float = 0.0
    loaded_at: float = -math.inf
    use_count: int = 0
    pinned: bool = False
    preloaded: bool = False
    """Policy lists it: it goes after all that are not, and before those that are pinned."""
    priority: Priority = "normal"

    def protected_until(self, protection: Protection) -> float:
        """The first moment at which it may be evicted, as far as time decides."""
        return max(self.last_used + protection.after_use, self.loaded_at + protection.after_load)


@dataclass(frozen=True, slots=True)
class Want:
    """What is asked for, and within which bounds."""

    bytes: int
    free: int | None
    """None: memory could not be read, so it is no obstacle."""
    weights: int = 0
    models: int = 1
    """How many more there would be; 0 for a loaded model that needs more memory."""
    max_models: int | None = None
    max_weights: int | None = None

    def obstacle(self, loaded: Sequence[Candidate], gone: Iterable[Candidate]) -> Obstacle:
        """What would still be in the way with `gone` out of memory."""
        leaving = list(gone)
        count = len(loaded) - len(leaving) + self.models
        if self.max_models is not None and count > self.max_models:
            return "count"
        weights = sum(c.weights for c in loaded) - sum(c.weights for c in leaving) + self.weights
        if self.max_weights is not None and weights > self.max_weights:
            return "weights"
        if self.free is not None and self.free + sum(c.frees for c in leaving) < self.bytes:
            return "memory"
        return ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to unload, in order; or what is in the way, and for how long."""

    victims: tuple[Hashable, ...] = ()
    obstacle: Obstacle = ""
    """Not empty: nothing is to be unloaded now."""
    at: float | None = None
    """With an obstacle: when it may be gone at the earliest. None: when something is given back."""
    never: bool = False
    """With an obstacle: it would be there with everything else out of memory."""
    in_the_way: tuple[Hashable, ...] = ()
    """With an obstacle that can go: what would have to leave, in order."""
    because: Obstacle = field(default="", compare=False)
    """What is in the way as long as nothing leaves."""


def plan_eviction(
    loaded: Sequence[Candidate], want: Want, protection: Protection, now: float
) -> Plan:
    """What makes room. Nobody is evicted for what would not fit anyway, nor without need."""
    idle = _in_order(candidate for candidate in loaded if not candidate.in_use)

    def until(candidate: Candidate) -> float:
        return candidate.protected_until(protection)

    def enough(order: Sequence[Candidate]) -> list[Candidate] | None:
        return _smallest(order, lambda gone: want.obstacle(loaded, gone))

    obstacle = want.obstacle(loaded, ())
    victims = enough([candidate for candidate in idle if until(candidate) <= now])
    if victims is not None:
        return Plan(_keys(victims), because=obstacle)
    for moment in sorted(set(map(until, idle))):
        waited = enough([candidate for candidate in idle if until(candidate) <= moment])
        if waited is not None:
            return Plan((), obstacle, moment, in_the_way=_keys(waited))
    everything = [*idle, *_in_order(candidate for candidate in loaded if candidate.in_use)]
    in_the_way = enough(everything)
    if in_the_way is None:
        return Plan((), want.obstacle(loaded, loaded), never=True)
    return Plan((), obstacle, in_the_way=_keys(in_the_way))


def plan_excess(
    loaded: Sequence[Candidate], want: Want, protection: Protection, now: float
) -> Plan:
    """What is idle and beyond the bounds; as much of it as may leave, were it not enough.

    With an obstacle left: `at` is when the next of them may leave.
    """
    idle = _in_order(candidate for candidate in loaded if not candidate.in_use)
    gone: list[Candidate] = []
    for candidate in idle:
        if want.obstacle(loaded, gone) and candidate.protected_until(protection) <= now:
            gone.append(candidate)
    obstacle = want.obstacle(loaded, gone)
    later = [c.protected_until(protection) for c in idle if c not in gone]
    at = min(later, default=None) if obstacle else None
    return Plan(_keys(gone), obstacle, at, because=want.obstacle(loaded, ()))


def in_order(loaded: Iterable[Candidate], protection: Protection, now: float) -> list[Candidate]:
    """What may be evicted now, the first to go first."""
    return _in_order(c for c in loaded if not c.in_use and c.protected_until(protection) <= now)


def _smallest(
    order: Sequence[Candidate], obstacle: Callable[[Sequence[Candidate]], Obstacle]
) -> list[Candidate] | None:
    """So many from the front that nothing is in the way, less those that do not help."""
    chosen: list[Candidate] = []
    for candidate in order:
        if not obstacle(chosen):
            break
        chosen.append(candidate)
    if obstacle(chosen):
        return None
    for candidate in reversed(chosen[:]):
        spared = [other for other in chosen if other is not candidate]
        if not obstacle(spared):
            chosen = spared
    return chosen


def _in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Pinned last, before them what is preloaded; low priority first; then the longest unused.

    How often one was used only breaks ties.
    """
    return sorted(
        candidates,
        key=lambda c: (c.pinned, c.preloaded, _RANKS[c.priority], c.last_used, c.use_count),
    )


def _keys(candidates: Iterable[Candidate]) -> tuple[Hashable, ...]:
    return tuple(candidate.key for candidate in candidates)
