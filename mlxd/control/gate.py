"""The way into one worker: many beside each other, or one alone. Interrupted ones come first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum

MakeWay = Callable[["Turn"], bool]
"""Have what runs leave for a while, soon; False: not now. It then stands in line again, `early`."""


class _Rank(IntEnum):
    """Who stands before whom in line; equals as they come."""

    FIRST = 0
    """Must be alone, and was interrupted or has had others make way."""
    EARLY = 1
    """Was interrupted."""
    NEW = 2


class Turn:
    """One who waits at a gate or is inside. `ready` is done once it is inside."""

    def __init__(self, gate: Gate, *, alone: bool, early: bool, make_way: MakeWay | None) -> None:
        self.alone = alone
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = False
        """It has left."""
        self.leaving = False
        """It makes way: nothing is to begin inside any more."""
        self.rank = _Rank.NEW if not early else _Rank.FIRST if alone else _Rank.EARLY
        self._gate = gate
        self._make_way = make_way

    def share(self) -> None:
        """It need not be alone any more."""
        self.alone = False
        self._gate.admit()

    def leave(self) -> None:
        """Go, from inside or from the queue; once is enough."""
        self.over = True
        self._gate.forget(self)

    def ask(self) -> None:
        """Have it make way for the first in line. One that is alone will not be for long."""
        if not (self.alone or self.leaving or self.over) and self._make_way is not None:
            self.leaving = self._make_way(self)


class Gate:
    """Nobody waits for ever: neither one who must be alone, nor the others.

    New ones do not overtake each other. Those inside make way for one who must be alone, and stand
    behind it; they go on beside it as soon as it may share.
    """

    def __init__(self) -> None:
        self._inside: set[Turn] = set()
        self._queue: list[Turn] = []

    def enter(self, *, alone: bool, early: bool = False, make_way: MakeWay | None = None) -> Turn:
        """Stand in line; whoever does this calls `leave`, whatever happens."""
        turn = Turn(self, alone=alone, early=early, make_way=make_way)
        behind = (at for at, one in enumerate(self._queue) if one.rank > turn.rank)
        self._queue.insert(next(behind, len(self._queue)), turn)
        self.admit()
        return turn

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._queue)

    def admit(self) -> None:
        """Let in who may come in now, and have those inside make way for the next."""
        while self._queue and self._fits(self._queue[0]):
            turn = self._queue.pop(0)
            self._inside.add(turn)
            if not turn.ready.done():
                turn.ready.set_result(None)
        if self._queue and self._queue[0].alone:
            self._queue[0].rank = _Rank.FIRST
            for turn in list(self._inside):
                turn.ask()

    def forget(self, turn: Turn) -> None:
        """It is neither inside nor in line any more."""
        self._inside.discard(turn)
        if turn in self._queue:
            self._queue.remove(turn)
        self.admit()

    def _fits(self, turn: Turn) -> bool:
        if turn.alone:
            return not self._inside
        return not any(one.alone for one in self._inside)
