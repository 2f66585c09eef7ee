"""One request that waits for a slot, or has one."""

from __future__ import annotations

from dataclasses import dataclass

from mlxd.control.applicant import Applicant
from mlxd.control.rates import Counted
from mlxd.core.caller import Priority


@dataclass(slots=True, eq=False)
class Place:
    """A request's, from its arrival to its end. For the scheduler to change, for others to read."""

    applicant: Applicant
    klass: Priority
    client: str
    """Whose fair share it takes."""
    cost: float
    """Tokens that it is expected to take; at least 1."""
    came: float
    deadline: float
    """When it has waited long enough."""
    number: int
    """Rises with each that came."""
    counted: Counted | None = None
    """Where it counts towards its client's rates."""
    started: float | None = None
    """When it got its slot; None: it waits."""
    loading: bool = False
    """It has a slot, and waits for its model while another one could serve."""
    passed: int = 0
    """How often one whose model was in memory went before it."""
    waits_for: str = ""
    """The first policy that left it no slot when it came; empty: it did not have to wait."""
    finish: float = 0.0
    """In its client's virtual time; see fair.py."""
    charged: float = 0.0
    """What its client's virtual time was charged for it."""
    over: bool = False
    """It has left."""

    @property
    def model(self) -> str:
        return self.applicant.model
