"""The classes: who of those that wait goes next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mlxd.control.fair import FairQueue
from mlxd.control.place import Place
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.policy.policy_set import PolicySet

_DIGITS = 9
"""Of virtual times that are compared: sums of thirds differ by how they came about, and of two
that are equal the higher class goes first.
"""
_EQUAL = 10.0**-_DIGITS


@dataclass(slots=True, eq=False)
class _Line:
    """One class. Its virtual time is its admissions over its weight."""

    name: Priority
    weight: int = 1
    time: float = 0.0
    since: float = 0.0
    """Since when it waits for a slot: it had nobody waiting, or got one."""
    passed: bool = False
    """Since then another class has got a slot that it could have taken."""
    queue: FairQueue = field(default_factory=FairQueue)

    def finish(self, now: float, behind: int = 0) -> float:
        """The virtual time at which the next of it would end, or the one with so many before it."""
        return max(self.time, now - 1 / self.weight) + (behind + 1) / self.weight


class Lines:
    """Weighted fair queueing of classes by their admissions; inside each, fair.py's.

    One that has waited for `ageing` while others got slots goes first, whatever the weights say.
    A place that a limit holds back counts for nothing in that, and holds up nobody else.
    """

    def __init__(self, policies: PolicySet, weight_of: Callable[[Place], int]) -> None:
        self._lines = {name: _Line(name) for name in PRIORITIES}
        self._weight_of = weight_of
        self._now = 0.0
        """The present virtual time."""
        self.tokens = 0.0
        """Expected of all that wait."""
        self.apply(policies)

    def apply(self, policies: PolicySet) -> None:
        self._ageing = float(policies.clients.priorities.ageing)
        self._affinity = policies.limits.concurrency.affinity
        for line in self._lines.values():
            line.weight = getattr(policies.clients.priorities, line.name).weight
            line.queue.reweigh(self._weight_of)

    def __len__(self) -> int:
        return sum(len(line.queue) for line in self._lines.values())

    def __iter__(self) -> Iterator[Place]:
        for line in self._lines.values():
            yield from line.queue

    def waiting(self, klass: Priority) -> int:
        return len(self._lines[klass].queue)

    def add(self, place: Place, now: float) -> None:
        line = self._lines[place.klass]
        if not len(line.queue):
            line.since, line.passed = now, False
            line.time = max(line.time, self._now)
        line.queue.add(place, self._weight_of(place))
        self.tokens += place.cost

    def remove(self, place: Place) -> None:
        self._lines[place.klass].queue.remove(place)
        self._less(place)

    def start(self, place: Place, now: float, *, waited: bool) -> None:
        """It gets a slot."""
        line = self._lines[place.klass]
        idle = not len(line.queue)
        line.time = max(line.time, self._now - (0 if idle else 1 / line.weight))
        self._now = max(self._now, line.time)
        line.time += 1 / line.weight
        line.since, line.passed = now, False
        line.queue.start(place, self._weight_of(place))
        if waited:
            self._less(place)

    def end(self, place: Place, tokens: float | None) -> None:
        self._lines[place.klass].queue.end(place, tokens)

    def next(
        self,
        now: float,
        admits: Callable[[Place], bool],
        class_admits: Callable[[Priority], bool],
        in_memory: Callable[[str], bool],
    ) -> Place | None:
        """Who goes next of those who may, to be started; None: nobody may."""
        able = [
            line
            for line in self._lines.values()
            if class_admits(line.name) and any(map(admits, line.queue))
        ]
        if not able:
            return None
        chosen = min(able, key=lambda line: self._urgency(line, now, admits))
        for line in able:
            line.passed = True  # the chosen one no longer, once it has started
        return self._first(chosen, admits, in_memory)

    def ahead(self, place: Place) -> int:
        """How many would go before one that waits."""
        line = self._lines[place.klass]
        return self._before(line, line.queue.rank(place))

    def ahead_of_new(self, klass: Priority) -> int:
        """How many would go before one more of a class, roughly."""
        line = self._lines[klass]
        return self._before(line, len(line.queue))

    def _before(self, line: _Line, rank: int) -> int:
        finish, count, is_later = line.finish(self._now, rank), rank, False
        for other in self._lines.values():
            if other is line:
                is_later = True
            elif len(other.queue):
                ahead = (finish - other.finish(self._now)) * other.weight
                # of two that would end at the same time the higher class goes first
                fitting = math.ceil(ahead - _EQUAL) if is_later else math.floor(ahead + _EQUAL) + 1
                count += min(len(other.queue), max(0, fitting))
        return count

    def _urgency(
        self, line: _Line, now: float, admits: Callable[[Place], bool]
    ) -> tuple[bool, float]:
        if line.passed and now - line.since > self._ageing:
            old = (place for place in line.queue if now - place.came > self._ageing)
            if any(map(admits, old)):
                return False, line.since
        return True, round(line.finish(self._now), _DIGITS)

    def _first(
        self, line: _Line, admits: Callable[[Place], bool], in_memory: Callable[[str], bool]
    ) -> Place | None:
        """The first that may, unless its model is not in memory and that of one behind it is: who
        was not passed too often yet lets that one go.
        """
        passed: list[Place] = []
        for place in line.queue:
            if not admits(place):
                continue
            if in_memory(place.model):
                for one in passed:
                    one.passed += 1
                return place
            passed.append(place)
            if place.passed >= self._affinity:
                break
        return passed[0] if passed else None

    def _less(self, place: Place) -> None:
        self.tokens = self.tokens - place.cost if len(self) else 0.0
