"""What a request asks of memory, and what it has of it in the engine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

LEAST_GROWTH = 256
"""More than the margin (budget.py): what has just grown need not ask at once."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one request asks of memory."""

    id: int
    prompt: int
    """Its tokens."""
    max_tokens: int
    expected_output: int
    """Tokens of the answer to reserve at first."""
    until: float
    """When it stops waiting; in the past for one that does not wait at all."""
    patient: bool = True
    """Whether it was to wait at all."""
    spares: bool = False
    """Nobody is to give memory up for it."""
    apart: bool = False
    """Its prompt is read outside the batch: beside that, whatever rows it has."""

    @property
    def enters(self) -> bool:
        """Whether it comes into the batch at all."""
        return not self.apart or self.max_tokens > 0

    @property
    def longest(self) -> int:
        return self.prompt + self.max_tokens

    @property
    def reserved(self) -> int:
        """At first; never so little that it could not ask for more in time."""
        return self.prompt + min(self.max_tokens, max(self.expected_output, LEAST_GROWTH))

    @property
    def growth(self) -> int:
        return max(LEAST_GROWTH, self.expected_output // 4)


class Stage(Enum):
    QUEUED = auto()
    """In the engine, without a cache."""
    JOINING = auto()
    """Its prompt is being read."""
    DECODING = auto()


@dataclass(slots=True)
class Reservation:
    """One sequence in the engine."""

    claim: Claim
    reserved: int
    used: int
    stage: Stage = Stage.QUEUED

    @property
    def may_grow(self) -> bool:
        return self.reserved < self.claim.longest

    @property
    def grown(self) -> int:
        return min(self.claim.longest, self.reserved + self.claim.growth)
