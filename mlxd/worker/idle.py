"""What a worker does while nobody asks it for anything."""

from __future__ import annotations

import time

from mlxd.worker.allocator import Allocator
from mlxd.worker.prefix.backing import Backing
from mlxd.worker.prefix.disk import LOOK_SECONDS
from mlxd.worker.reporter import Reporter

IDLE_SECONDS = 5.0
"""Until what the allocator keeps for reuse is given back: whoever asks before, as in a conversation
of a program's, finds it. Where somebody else wants it, the daemon says so."""
PAUSE_SECONDS = 0.15
"""Now and then it is given back after so little: who is never idle for longer keeps ever more."""


class Idle:
    """Puts on disk what is kept of prompts, and gives back memory that is kept for reuse."""

    def __init__(self, allocator: Allocator, reporter: Reporter, backing: Backing | None) -> None:
        self._allocator = allocator
        self._reporter = reporter
        self._backing = backing
        self._since: float | None = None
        """When a busy time ended, whose buffers the allocator still keeps."""

    def begin(self) -> None:
        """A busy time is over."""
        self._since = time.monotonic()
        self._reporter.memory()

    def work(self) -> float:
        """Does what is to be done now; seconds until there is more; 0: there is none to come."""
        writes = self._backing is not None and self._backing.tend(idle=True)
        if self._since is None:
            return LOOK_SECONDS if writes else 0.0
        idle = time.monotonic() - self._since
        if idle < PAUSE_SECONDS:
            return PAUSE_SECONDS
        if idle >= IDLE_SECONDS:
            self.give_back()
        else:
            self._allocator.tidy()
        return LOOK_SECONDS

    def give_back(self) -> None:
        """All that is kept for reuse."""
        self._since = None
        self._allocator.trim()
        self._reporter.memory()
