"""What those who wait are told of it: their position and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlxd.control.place import Place
from mlxd.control.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Waiting:
    """How it stands for one that waits."""

    position: int
    """1: it goes next."""
    expected_wait: float
    """Seconds from now; roughly."""


OnWait = Callable[[Waiting], None]


@dataclass(slots=True, eq=False)
class _Told:
    on_wait: OnWait
    position: int


class QueueView:
    """Who of those that wait is told, and what each was told last."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._told: dict[Place, _Told] = {}

    def __len__(self) -> int:
        return len(self._told)

    def begin(self, place: Place, on_wait: OnWait, view: Waiting) -> None:
        self._told[place] = _Told(on_wait, view.position)
        on_wait(view)

    def end(self, place: Place) -> None:
        self._told.pop(place, None)

    def of(self, place: Place) -> Waiting:
        scheduler = self._scheduler
        return Waiting(scheduler.position(place), scheduler.expected_wait(place))

    def tell(self) -> None:
        """Each whose position has changed since it was told."""
        for place, told in [*self._told.items()]:
            position = self._scheduler.position(place)
            if position != told.position:
                told.position = position
                told.on_wait(Waiting(position, self._scheduler.expected_wait(place)))
