"""What became of one request: as the log has it, or as a simulation does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxd.control.applicant import ANONYMOUS
from mlxd.simulate.traffic.service import LOADS
from mlxd.telemetry.traffic import Request

LEFT = "client_left"
"""In place of a code: its client did not wait for the end."""


@dataclass(slots=True, eq=False)
class Outcome:
    """One request's."""

    tenant: str
    klass: str
    model: str
    code: str = ""
    """Why it failed or was refused; empty: it was served."""
    wait: float | None = None
    """Seconds until it had a slot; None: it got none."""
    ttft: float | None = None
    """Seconds from its arrival to its first token."""
    loaded: bool = False
    """It waited for its model."""


def measured(requests: Iterable[Request]) -> list[Outcome]:
    """As it was."""
    return [
        Outcome(
            tenant=one.tenant or ANONYMOUS,
            klass=one.klass,
            model=one.model,
            code=LEFT if one.left else one.code,
            wait=one.waited,
            ttft=one.ttft,
            loaded=one.load >= LOADS,
        )
        for one in requests
    ]
