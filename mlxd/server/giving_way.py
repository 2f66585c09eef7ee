"""Which connection gives way to a new one, when `server.http.max_connections` are open.

One whose request began a moment ago and is not whole: that costs nothing to whoever holds it, and
its place is worth something to others. Whoever has been silent longest goes first, then those who
ask nothing, and at last who was heard a moment ago, so that a long body that keeps coming stays.
Whoever waits for an answer, or is taking one, never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Generic, Protocol, TypeVar

PATIENCE_SECONDS = 0.25
"""For a request to be whole, or to go on; the clients of a herd have sent theirs by then."""
_LOOK_SECONDS = 0.01
"""Between two looks at all connections: a flood of new ones is not to make that many."""


class Holding(IntEnum):
    """What a connection is held for."""

    COMING = 0
    """A request that is not whole."""
    IDLE = 1
    """The next one."""


class _Rank(IntEnum):
    """Who gives way first."""

    QUIET = 0
    IDLE = 1
    HEARD = 2


class Holder(Protocol):
    """A connection, as far as that matters here."""

    @property
    def holding(self) -> Holding | None:
        """None: it does not give way."""

    @property
    def held_since(self) -> float: ...

    @property
    def silent_since(self) -> float: ...

    @property
    def unheard(self) -> bool:
        """Something of it has come that nobody has read yet: it is not the one that is slow."""


T = TypeVar("T", bound=Holder)


class GivingWay(Generic[T]):
    """The connections that may go, found now and then, and taken in their order."""

    def __init__(self, connections: Callable[[], Iterable[T]]) -> None:
        self._connections = connections
        self._found: list[tuple[Holding, float, T]] = []
        self._looked = float("-inf")

    def next(self, now: float) -> T | None:
        """The one that goes first; None: nobody does."""
        return self._found.pop()[2] if self.anybody(now) else None

    def anybody(self, now: float) -> bool:
        """Whether one would go."""
        while True:
            while self._found:
                holding, since, one = self._found[-1]
                if (one.holding, one.silent_since) == (holding, since) and not one.unheard:
                    return True
                self._found.pop()
            if now - self._looked < _LOOK_SECONDS:
                return False
            self._look(now)

    def _look(self, now: float) -> None:
        self._looked = now
        found = [
            (one.holding, one.silent_since, one)
            for one in self._connections()
            if now - one.held_since >= PATIENCE_SECONDS
        ]
        self._found = sorted(
            ((holding, since, one) for holding, since, one in found if holding is not None),
            key=lambda entry: (_rank(entry[0], now - entry[1]), entry[1]),
            reverse=True,
        )


def _rank(holding: Holding, silent_seconds: float) -> _Rank:
    if holding is Holding.IDLE:
        return _Rank.IDLE
    return _Rank.QUIET if silent_seconds >= PATIENCE_SECONDS else _Rank.HEARD
