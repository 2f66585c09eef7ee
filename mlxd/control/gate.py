"""The way into one worker: many beside each other, or one alone. First come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Turn:
    """One who waits at a gate or is inside. `ready` is done once it is inside."""

    def __init__(self, gate: Gate, *, alone: bool) -> None:
        self.alone = alone
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gate = gate

    def share(self) -> None:
        """It need not be alone any more."""
        self.alone = False
        self._gate.admit()

    def leave(self) -> None:
        """Go, from inside or from the queue; once is enough."""
        self._gate.forget(self)


class Gate:
    """Nobody overtakes, so nobody waits for ever: neither one who must be alone, nor the others."""

    def __init__(self) -> None:
        self._inside: set[Turn] = set()
        self._queue: deque[Turn] = deque()

    def enter(self, *, alone: bool) -> Turn:
        """Stand in line; whoever does this calls `leave`, whatever happens."""
        turn = Turn(self, alone=alone)
        self._queue.append(turn)
        self.admit()
        return turn

    @property
    def contested(self) -> bool:
        """Whether somebody waits who must be alone."""
        return any(turn.alone for turn in self._queue)

    def admit(self) -> None:
        """Let in who may come in now."""
        while self._queue and self._fits(self._queue[0]):
            turn = self._queue.popleft()
            self._inside.add(turn)
            if not turn.ready.done():
                turn.ready.set_result(None)

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
