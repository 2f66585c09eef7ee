"""A sliding window per client. It holds counts, not policy: the quota comes with each question."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from mlxd.policy.schema import RateLimit


@dataclass(frozen=True, slots=True)
class Quota:
    """`requests` in any `window` seconds; at most `max_keys` clients are remembered."""

    requests: int
    window: float
    max_keys: int = 100_000


class SlidingWindow:
    """The times of each client's counted requests. Exact: no bucket edges to burst across.

    A quota may differ from the one before it. Fewer `requests`, more, or a shorter `window` hold at
    once, and exactly. A longer `window` counts what is still remembered: times that had left the
    shorter one are forgotten (at that client's next request, if not before). Until the longer one
    has passed once since the change it may so hold more than `requests`: by those forgotten.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[str, array[float]] = OrderedDict()
        """Rising. An array takes a fifth of what a list of numbers does, and clients are many."""

    def __len__(self) -> int:
        return len(self._times)

    def copy(self) -> SlidingWindow:
        """One with the same memory, which then goes its own way."""
        other = SlidingWindow()
        other._times.update((key, times[:]) for key, times in self._times.items())
        return other

    def take(self, key: str, quota: Quota, now: float) -> float | None:
        """Count one request; or, if the quota is used up, the seconds until one would pass."""
        times = self._recent(key, quota, now)
        if len(times) >= quota.requests:
            return times[len(times) - quota.requests] + quota.window - now
        times.append(now)
        self._times[key] = times
        self._times.move_to_end(key)
        while len(self._times) > quota.max_keys:
            self._times.popitem(last=False)
        return None

    def refund(self, key: str, taken_at: float) -> None:
        """Uncount a request counted at `taken_at`, if it is still remembered."""
        times = self._times.get(key)
        if times is not None and taken_at in times:
            times.remove(taken_at)

    def remaining(self, key: str, quota: Quota, now: float) -> tuple[int, float]:
        """Requests left, and the seconds until there is one more (0 when none is counted)."""
        times = self._recent(key, quota, now)
        left = max(0, quota.requests - len(times))
        over = max(0, len(times) - quota.requests)
        return left, (times[over] + quota.window - now if times else 0.0)

    def _recent(self, key: str, quota: Quota, now: float) -> array[float]:
        times = self._times.get(key)
        if times is None:
            return array("d")
        if times and times[0] <= now - quota.window:
            del times[: bisect_right(times, now - quota.window)]
        return times


@dataclass(slots=True)
class _Kept:
    """A rule, as it was last in force, and what it has counted."""

    rule: RateLimit
    window: SlidingWindow


class RuleWindows:
    """The window of each rate rule, by the rule's name; they outlive edits of the rules."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._heirs: dict[str, str] = {}

    def of(self, rule: RateLimit) -> SlidingWindow:
        """A request admitted under a name that has just gone counts on with the name's heir."""
        name = self._heirs.get(rule.name, rule.name)
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = _Kept(rule, SlidingWindow())
        return kept.window

    def apply(self, rules: Iterable[RateLimit]) -> None:
        """These are the rules now.

        A rule whose name stays keeps its window. One of a new name inherits from a rule of the same
        `key` that has gone (the one with the longest window: it remembers most), because a rename,
        or a split into two, is no free quota. The windows of all others that have gone are dropped:
        what comes back later starts empty.
        """
        rules = tuple(rules)
        keys = {rule.name: rule.key for rule in rules}
        gone = {name: kept for name, kept in self._kept.items() if keys.get(name) != kept.rule.key}
        self._heirs = {}
        after: dict[str, _Kept] = {}
        for rule in rules:
            if rule.name in self._kept and rule.name not in gone:
                after[rule.name] = _Kept(rule, self._kept[rule.name].window)
            elif (left := _most(gone, rule.key)) is not None:
                window = gone[left].window
                after[rule.name] = _Kept(rule, window.copy() if left in self._heirs else window)
                self._heirs.setdefault(left, rule.name)
        self._kept = after


def _most(gone: dict[str, _Kept], key: str) -> str | None:
    """Of the rules that count by this key, the one with the longest window."""
    names = [name for name, kept in gone.items() if kept.rule.key == key]
    return max(names, key=lambda name: gone[name].rule.window, default=None)
