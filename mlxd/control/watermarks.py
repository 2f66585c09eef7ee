"""Where memory stands against its marks: entered and left with hysteresis, told the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from mlxd.policy.schema.memory import Memory

_AUTO_CLEAR = 0.05


class Level(IntEnum):
    """Each mark stands above the one before, and holds as long as a higher one does."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2
    EMERGENCY = 3

    @property
    def word(self) -> str:
        """As policies write it."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Mark:
    """One mark as policy has it."""

    level: Level
    enter: float
    """Share of memory in use: the warning mark is reached at it, the others above it."""
    clear: float
    held: float
    """Seconds that it must be reached without a break before it counts."""
    actions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The policy that an operator changes to move it."""
        return f"memory.watermarks.{self.level.word}.enter"

    def reached(self, share: float, pressure: Level) -> bool:
        over = share >= self.enter if self.level is Level.WARNING else share > self.enter
        return over or pressure >= self.level

    def cleared(self, share: float, pressure: Level) -> bool:
        return share < self.clear and pressure < self.level

    def harder_than(self, other: Mark | None) -> bool:
        """Whether something that reached the other may not reach this one."""
        return other is not None and (self.enter > other.enter or self.held > other.held)


def marks_of(memory: Memory) -> tuple[Mark, ...]:
    """From the lowest to the highest."""
    found = []
    for level in (Level.WARNING, Level.CRITICAL, Level.EMERGENCY):
        written = getattr(memory.watermarks, level.word)
        enter = float(written.enter)
        auto = max(enter - _AUTO_CLEAR, enter / 2)
        clear = auto if written.clear == "auto" else float(written.clear)
        found.append(Mark(level, enter, clear, float(written.held), tuple(written.actions)))
    return tuple(found)


class Waterline:
    """The highest mark that holds. Reaching one reaches all below it, in one step."""

    def __init__(self) -> None:
        self.level = Level.NORMAL
        self._since: dict[Level, float] = {}
        """When each mark that is reached began to be."""
        self._known: dict[Level, Mark] = {}
        """The marks as of the last reading."""

    def observe(self, marks: Sequence[Mark], share: float, pressure: Level, now: float) -> Level:
        """Follow one reading: `pressure` is a level that the system itself names.

        A mark that has become harder to reach since the last reading was perhaps never reached as
        it is now: it holds on only if this reading says so.
        """
        reached = Level.NORMAL
        for mark in marks:
            if not mark.reached(share, pressure):
                self._since.pop(mark.level, None)
            elif now - self._since.setdefault(mark.level, now) >= mark.held:
                reached = mark.level
        self.level = max(self.level, reached)
        for mark in reversed(marks):
            unsaid = mark.level > reached and mark.harder_than(self._known.get(mark.level))
            if mark.level == self.level and (unsaid or mark.cleared(share, pressure)):
                self.level = Level(mark.level - 1)
        self._known = {mark.level: mark for mark in marks}
        return self.level

    def due(self, marks: Sequence[Mark], now: float) -> float:
        """Seconds until a mark that is reached will have been for long enough; inf: none is."""
        pending = [
            self._since[mark.level] + mark.held - now
            for mark in marks
            if mark.level > self.level and mark.level in self._since
        ]
        return max(0.0, min(pending, default=math.inf))
