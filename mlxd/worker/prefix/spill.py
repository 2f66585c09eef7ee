"""What of memory goes to the disk, and when: decides, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from mlxd.worker.engine import Kind

LEAST_TOKENS = 256
"""Fewer are computed about as soon as they are read from a disk."""
SETTLED_SECONDS = 5.0
"""A conversation that goes on makes what was kept of it old with each turn: that is written when it
has not been of use for so long. A system's turn stays as it is, and need not wait."""
PATIENT_SECONDS = 30.0
"""What is not written by then, since the engine works, is written beside its work."""
BURST_BYTES, HOURLY_BYTES = 8 * 2**30, 4 * 2**30
"""What is written at one time, and in the long run. 96 GiB a day is what a disk of a terabyte is
rated to bear for more than ten years."""


class Kept(Protocol):
    """A beginning of prompts in memory; `store.Entry` is one."""

    ids: bytes
    """Its tokens, packed."""
    caches: list[Any]
    kind: Kind
    owner: str
    public: bool
    """Whether it serves everybody."""
    used: float
    """When it was last of use."""
    kept: bool
    """Whether the operator wants it kept before others."""
    stored: bool
    """Whether it is on disk, or on its way there."""

    @property
    def length(self) -> int: ...


def is_worth_it(entry: Kept) -> bool:
    """Whether a disk is to have it at all."""
    return entry.kind != "partial" and entry.length >= LEAST_TOKENS and not entry.stored


def next_of(entries: Iterable[Kept], now: float, *, idle: bool) -> Kept | None:
    """Whose turn it is to be written: what is worth most, and was of use last. `idle`: nobody is
    held up by it.
    """
    due = (entry for entry in entries if is_worth_it(entry) and _is_due(entry, now, idle=idle))
    return max(due, key=worth, default=None)


def worth(entry: Kept) -> tuple[bool, bool, float]:
    return entry.kept, entry.kind == "system", entry.used


def _is_due(entry: Kept, now: float, *, idle: bool) -> bool:
    age = now - entry.used
    stays = entry.kept or entry.kind == "system"
    return (idle and (stays or age >= SETTLED_SECONDS)) or age >= PATIENT_SECONDS


class Wear:
    """How much may be written, so that a disk lasts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(BURST_BYTES)
        self._at = clock()

    def allows(self, nbytes: int) -> bool:
        """Whether so much may be written now; then it is counted."""
        now = self._clock()
        self._left = min(BURST_BYTES, self._left + (now - self._at) * HOURLY_BYTES / 3600)
        self._at = now
        if nbytes > self._left:
            return False
        self._left -= nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """So much was allowed, and not written."""
        self._left += nbytes
