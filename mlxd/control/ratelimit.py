"""Counts of requests by client. They hold no policy: the quota comes with each question."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

Algorithm = Literal["sliding_window", "token_bucket", "gcra"]
_HARDLY = 1e-9
"""Seconds: what a sum of floats may be off by."""
_FORGOTTEN_AT_ONCE = 2
"""Silent clients, with each request that counts: more than can be new."""


@dataclass(frozen=True, slots=True)
class Quota:
    """`requests` in each `window` seconds; at most `max_keys` clients are remembered."""

    requests: int
    window: float
    max_keys: int = 100_000
    algorithm: Algorithm = "sliding_window"

    @property
    def interval(self) -> float:
        """Seconds between two requests that are spread evenly."""
        return self.window / self.requests

    @property
    def burst(self) -> int:
        """How many may go at once."""
        return 1 if self.algorithm == "gcra" else self.requests


@dataclass(slots=True)
class _Count:
    """One client's. Every algorithm is told by the same: another one goes on from there."""

    level: float = 0.0
    """Of the saved-up quota, what was used at `at`; it becomes less evenly, down to 0."""
    at: float = 0.0
    times: array[float] = field(default_factory=lambda: array("d"))
    """Of those within the window, rising. An array takes a fifth of what a list of numbers does."""

    def used(self, quota: Quota, now: float) -> float:
        """Of the saved-up quota."""
        level = min(self.level, quota.requests) - (now - self.at) / quota.interval
        return max(0.0, level)

    def silent(self, quota: Quota, now: float) -> bool:
        """Whether it says as much as none: whatever the algorithm, all of the quota is back."""
        return self.at <= now - quota.window

    def forget(self, before: float) -> None:
        """The times that have left the window."""
        if self.times and self.times[0] <= before:
            del self.times[: bisect_right(self.times, before)]


class Tally:
    """What each client has used of a rule's quota.

    - sliding_window: so many in any window. Exact: there are no edges to burst across.
    - token_bucket: a quota that is saved up may go at once; it fills up evenly.
    - gcra: evenly spaced, one in each `window / requests` seconds; nothing is saved up.

    A quota may differ from the one before it. Fewer `requests`, more, or a shorter `window` hold at
    once, and exactly. A longer `window` counts what is still remembered: times that had left the
    shorter one are forgotten (at that client's next request, if not before). Until the longer one
    has passed once since the change it may so hold more than `requests`: by those forgotten.

    A change of algorithm is no free quota: what has counted counts for the new one, too, and a
    quota that was used up in another way fills up evenly.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        """The longest silent first."""

    def __len__(self) -> int:
        return len(self._counts)

    def copy(self) -> Tally:
        """One with the same memory, which then goes its own way."""
        other = Tally()
        for key, one in self._counts.items():
            other._counts[key] = _Count(one.level, one.at, one.times[:])
        return other

    def take(self, key: str, quota: Quota, now: float) -> float | None:
        """Count one request; or, if the quota is used up, the seconds until one would pass."""
        count = self._counts.get(key) or _Count()
        wait = _wait(count, quota, now)
        if wait > 0:
            return wait
        count.level = count.used(quota, now) + 1
        count.at = now
        count.times.append(now)
        self._counts[key] = count
        self._counts.move_to_end(key)
        self._forget(quota, now)
        return None

    def wait(self, key: str, quota: Quota, now: float) -> float:
        """Seconds until one more would pass; none, or less: it would now."""
        return _wait(self._counts.get(key) or _Count(), quota, now)

    def refund(self, key: str, taken_at: float) -> None:
        """Uncount a request counted at `taken_at`, if it is still remembered."""
        count = self._counts.get(key)
        if count is not None and taken_at in count.times:
            count.times.remove(taken_at)
            count.level = max(0.0, count.level - 1)

    def remaining(self, key: str, quota: Quota, now: float) -> tuple[int, float]:
        """Requests left, and the seconds until there is one more (0 when none is counted)."""
        count = self._counts.get(key) or _Count()
        if quota.algorithm == "sliding_window":
            count.forget(now - quota.window)
            times = count.times
            over = max(0, len(times) - quota.requests)
            reset = times[over] + quota.window - now if times else 0.0
            return max(0, quota.requests - len(times)), reset
        used = count.used(quota, now)
        left = max(0, int(quota.burst - used + _HARDLY / quota.interval))
        reset = (used + left + 1 - quota.burst) * quota.interval
        return left, reset if left < quota.burst else 0.0

    def counted(self, key: str, quota: Quota, now: float) -> int:
        """Requests of the last window."""
        count = self._counts.get(key) or _Count()
        count.forget(now - quota.window)
        return len(count.times)

    def _forget(self, quota: Quota, now: float) -> None:
        """Who is silent, a few at a time; and beyond `max_keys` the longest silent."""
        for _ in range(_FORGOTTEN_AT_ONCE):
            key = next(iter(self._counts))
            if not self._counts[key].silent(quota, now):
                break
            del self._counts[key]
        while len(self._counts) > quota.max_keys:
            self._counts.popitem(last=False)


def _wait(count: _Count, quota: Quota, now: float) -> float:
    """Seconds until one more may go; none, or less: it may."""
    count.forget(now - quota.window)
    if quota.algorithm != "sliding_window":
        wait = (count.used(quota, now) + 1 - quota.burst) * quota.interval
        return wait if wait > _HARDLY else 0.0
    times = count.times
    if len(times) < quota.requests:
        return 0.0
    return times[len(times) - quota.requests] + quota.window - now


class Named(Protocol):
    """A rule, as far as its tally goes by it."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str:
        """What it counts apart from each other."""
        ...

    @property
    def window(self) -> float: ...


@dataclass(slots=True)
class _Kept:
    """A rule, as it was last in force, and what it has counted."""

    rule: Named
    tally: Tally


class Tallies:
    """The tally of each rate rule, by the rule's name; they outlive edits of the rules."""

    def __init__(self) -> None:
        self._keys: dict[str, str] | None = None
        """Of the rules now, by name; None: nobody has said yet which these are."""
        self._kept: dict[str, _Kept] = {}
        self._heirs: dict[tuple[str, str], str] = {}
        """By name and key: the name may be another rule's by now, which counts by another key."""

    def of(self, rule: Named) -> Tally:
        """A request admitted under a rule that has just gone counts on with the rule's heir, and
        nowhere that is remembered where it has none.
        """
        name = self._heirs.get((rule.name, rule.key), rule.name)
        kept = self._kept.get(name)
        if kept is None and (self._keys is None or self._keys.get(name) == rule.key):
            kept = self._kept[name] = _Kept(rule, Tally())
        return kept.tally if kept is not None and kept.rule.key == rule.key else Tally()

    def apply(self, rules: Iterable[Named]) -> None:
        """These are the rules now.

        A rule whose name stays keeps its tally. One of a new name inherits from a rule of the same
        `key` that has gone (the one with the longest window: it remembers most), because a rename,
        or a split into two, is no free quota. The tallies of all others that have gone are dropped:
        what comes back later starts empty.
        """
        rules = tuple(rules)
        keys = self._keys = {rule.name: rule.key for rule in rules}
        gone = {name: kept for name, kept in self._kept.items() if keys.get(name) != kept.rule.key}
        self._heirs = {}
        after: dict[str, _Kept] = {}
        for rule in rules:
            if rule.name in self._kept and rule.name not in gone:
                after[rule.name] = _Kept(rule, self._kept[rule.name].tally)
            elif (left := _most(gone, rule.key)) is not None:
                tally = gone[left].tally
                inherited = (left, rule.key) in self._heirs
                after[rule.name] = _Kept(rule, tally.copy() if inherited else tally)
                self._heirs.setdefault((left, rule.key), rule.name)
        self._kept = after


def _most(gone: dict[str, _Kept], key: str) -> str | None:
    """Of the rules that count by this key, the one with the longest window."""
    names = [name for name, kept in gone.items() if kept.rule.key == key]
    return max(names, key=lambda name: gone[name].rule.window, default=None)
