"""How many tokens to draft, from what steps take and how often drafts are right. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

DEPTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
"""Tokens drafted in a step; 0: none."""
MOST = DEPTHS[-1]
FIRST = 3
"""Drafted when nothing is known but what a step without takes."""
HOPE = 0.7
"""That a drafted token is right, before any was."""
_MARGIN = 1.02
"""By so much more than without must be expected of drafting."""
_LEARN = 0.25
"""How much a step counts against all before it."""
_FADE = 0.95
"""How much all before it count, for each drafted token that is found right or wrong."""
_BELIEF = 4.0
"""Drafted tokens that the hope of a new sequence counts as."""
_SLOW_FADE = 0.998


class Costs:
    """Seconds of a step that drafts so many tokens, for one pair of models on one machine."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._once: set[int] = set()
        """Seen once: that may have compiled something, and the next counts alone."""

    def took(self, depth: int, seconds: float) -> None:
        known = self._seconds.get(depth)
        if known is None:
            self._once.add(depth)
            self._seconds[depth] = seconds
        elif depth in self._once:
            self._once.remove(depth)
            self._seconds[depth] = min(known, seconds)
        else:
            self._seconds[depth] += _LEARN * (min(seconds, 4 * known) - known)

    def known(self, depth: int) -> bool:
        return depth in self._seconds

    def of(self, depth: int) -> float:
        """Measured; else on the line through its neighbours. 0 must be known, and another."""
        found = self._seconds.get(depth)
        if found is not None:
            return found
        depths = sorted(self._seconds)
        right = min(max(1, bisect_right(depths, depth)), len(depths) - 1)
        low, high = depths[right - 1], depths[right]
        a, b = self._seconds[low], self._seconds[high]
        return max(b if depth > high else 0.0, a + (b - a) * (depth - low) / (high - low))


@dataclass(slots=True)
class Chance:
    """That a drafted token is right, as the last ones were. Begins as a hope."""

    tried: float = _BELIEF
    right: float = _BELIEF * HOPE

    @property
    def value(self) -> float:
        return self.right / self.tried

    def saw(self, drafted: int, accepted: int, fade: float = _FADE) -> None:
        """Behind the first wrong one none was tried."""
        for n in range(min(drafted, accepted + 1)):
            self.tried = fade * self.tried + 1
            self.right = fade * self.right + (n < accepted)


class Worth:
    """Decides for the sequences of one pair of models."""

    def __init__(self) -> None:
        self.costs = Costs()
        self._all = Chance(1.0, HOPE)

    def chance(self) -> Chance:
        """Of a new sequence: as it was for the others."""
        return Chance(_BELIEF, _BELIEF * self._all.value)

    def saw(self, chance: Chance, drafted: int, accepted: int) -> None:
        chance.saw(drafted, accepted)
        self._all.saw(drafted, accepted, _SLOW_FADE)

    def depth(self, chance: float, most: int) -> int:
        """How many tokens to draft, `most` at most."""
        if not self.costs.known(0) or most <= 0:
            return 0
        if not any(self.costs.known(depth) for depth in DEPTHS[1:]):
            return min(FIRST, most)
        plain = _MARGIN / self.costs.of(0)
        rates = {
            depth: expected(chance, depth) / self.costs.of(depth)
            for depth in DEPTHS[1:]
            if depth <= most
        }
        best = max(rates, key=rates.__getitem__)
        return best if rates[best] > plain else 0


def expected(chance: float, depth: int) -> float:
    """Tokens of a step that drafts `depth` of them, each right with this chance if those before it
    are: one is always given.
    """
    if chance >= 1:
        return depth + 1.0
    return float((1 - chance ** (depth + 1)) / (1 - chance))
