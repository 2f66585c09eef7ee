"""What was decided about a model's bytes, with the numbers that it was decided by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlxd.control.eviction import Plan
from mlxd.core.errors import PolicyLine

Spares = Literal["", "protect_recent", "min_residency"]


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an idle model has to leave memory before its time."""

    reason: Literal["load", "growth", "watermark", "max_loaded"]
    wanted_by: str = ""
    """The model that it makes room for."""
    needed: int = 0
    """Bytes of memory that are asked for; 0: it is not about those."""
    available: int = 0
    """Of memory, as long as nothing leaves."""
    policy: PolicyLine | None = None
    """The line without which it might stay."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A plan for one load, or for a worker that needs more."""

    plan: Plan
    needed: int
    """Bytes asked for: of memory, or of weights where the bound on those is the obstacle."""
    available: int
    """Of the same, as things are."""
    at_best: int
    """Once everything is gone that would leave; without a plan, once everything else is."""
    names: tuple[str, ...] = ()
    """Who leaves, or would have to, in order."""
    spares: Spares = ""
    """Which time under memory.eviction is to be waited for."""
    lent: int = 0
    """Of the bytes asked for, those that are lent and have to be given back before."""
    reserve: int = 0
    """The most that may be kept for a first generation, so that a load fits; not above 0: even with
    nothing kept it would not, or it is no load.
    """

    @property
    def reserve_decides(self) -> bool:
        """Whether what is kept for a generation is all that memory lacks."""
        return self.plan.obstacle == "memory" and self.reserve > 0

    @property
    def reserve_evicts(self) -> bool:
        """Whether nobody would have to leave, were nothing kept for a generation."""
        return self.plan.because == "memory" and self.reserve > 0

    @property
    def present(self) -> int:
        """What the bytes asked for are told to be compared with."""
        return self.at_best if self.plan.never else self.available

    @property
    def fits(self) -> bool:
        """Nothing is in the way, and nobody need leave."""
        return not self.plan.obstacle and not self.plan.victims

    @property
    def at_once(self) -> bool:
        """Nor need anything be given back that is lent."""
        return self.fits and not self.lent
