"""What the daemon hears of the engine's steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlxd.core.clock import stamp
from mlxd.ipc.messages import Output, Piece, Reused
from mlxd.worker.allocator import Allocator
from mlxd.worker.job import Progress
from mlxd.worker.link import Link
from mlxd.worker.running import Running

MEMORY_EVERY = 64
"""Steps between two measures of memory."""
SIGN_OF_LIFE_SECONDS = 1.0


class Reporter:
    """One message for each step that has something to say, and one a second in any case."""

    def __init__(self, link: Link, progress: Progress, allocator: Allocator) -> None:
        self._link = link
        self._progress = progress
        self._allocator = allocator
        self._memory_due = 0
        self._reported = 0.0

    @property
    def sign_of_life_is_due(self) -> bool:
        return stamp() - self._reported >= SIGN_OF_LIFE_SECONDS

    def memory(self) -> None:
        """What is held now: others wait for what was given back."""
        self._memory_due = self._progress.step
        self.report([])

    def report(
        self,
        pieces: list[Piece],
        started: Sequence[int] = (),
        begun: Sequence[int] = (),
        runs: Iterable[Running] = (),
        reused: Iterable[Reused] = (),
        *,
        moments: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """`runs`: those whose tokens gave the pieces. `moments`: when the prefills of `started`
        began, and when the first tokens of `begun` were there.
        """
        step = self._progress.step
        self._reported = stamp()
        memory = None
        if step >= self._memory_due:
            memory = self._allocator.measure()
            self._memory_due = step + MEMORY_EVERY
        taken = [told for running in runs if (told := running.tell()) is not None]
        self._link.send(
            Output(
                step, pieces, memory, list(started), list(begun), taken, list(reused),
                moments[0] if started else 0.0, moments[1] if begun else 0.0,
            )
        )  # fmt: skip
