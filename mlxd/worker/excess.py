"""What is done when the engine holds more memory than it may."""

from __future__ import annotations

from mlxd.core.sizes import spoken
from mlxd.ipc.messages import Refused
from mlxd.worker.allocator import Allocator
from mlxd.worker.budget import Ledger
from mlxd.worker.engine import Prefixes


class Excess:
    """First what is kept is freed, buffers and beginnings of prompts; if that is not it, a sequence
    ends.
    """

    def __init__(self, ledger: Ledger, allocator: Allocator, prefixes: Prefixes | None) -> None:
        self._ledger = ledger
        self._allocator = allocator
        self._prefixes = prefixes
        self._exceeded = False

    def look(self) -> Refused | None:
        """Frees what can be; if a sequence must end all the same, what is to be said of it."""
        allowed = self._ledger.allowance
        active = self._allocator.active() if allowed else 0
        already, self._exceeded = self._exceeded, active > allowed
        if not self._exceeded:
            return None
        if self._prefixes is not None:
            self._prefixes.free(active - allowed)
        self._allocator.trim()
        victim = self._ledger.victim()
        if not already or victim is None:
            return None
        return Refused(
            victim,
            "insufficient_memory",
            f"ended: the engine holds {spoken(active)} of memory and {spoken(allowed)} are allowed",
            needed_bytes=active,
            available_bytes=allowed,
        )
