"""What came of one attempt to put policies in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlxd.policy.diff import Change
from mlxd.policy.load import PolicyError

Trigger = Literal["start", "watch", "signal", "admin", "rollback"]
Result = Literal["applied", "unchanged", "refused"]
_SHOWN = 20
"""Changes that a line of the log names."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt; `refused` has changed nothing."""

    id: int
    trigger: Trigger
    result: Result
    generation: int
    """In force after it."""
    etag: str
    """Of the policies in force after it."""
    at: float
    """Seconds since the epoch."""
    seconds: float
    changes: tuple[Change, ...] = ()
    errors: tuple[PolicyError, ...] = ()
    by: str = ""
    """Who asked, as far as the system says."""

    @property
    def ok(self) -> bool:
        return self.result != "refused"

    def __str__(self) -> str:
        """One line for the log."""
        if self.result == "refused":
            more = f" and {len(self.errors) - 1} more" if len(self.errors) > 1 else ""
            return f"policies refused, generation {self.generation} stays: {self.errors[0]}{more}"
        if self.result == "unchanged":
            return f"policies unchanged, generation {self.generation}"
        if self.trigger == "start":
            return f"policies generation {self.generation} in force: as they are at the start"
        what = "; ".join(map(str, self.changes[:_SHOWN])) or "the same values, from other files"
        if len(self.changes) > _SHOWN:
            what += f"; and {len(self.changes) - _SHOWN} more"
        return f"policies generation {self.generation} in force: {what}"

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "trigger": self.trigger,
            "by": self.by,
            "result": self.result,
            "generation": self.generation,
            "etag": self.etag,
            "at": self.at,
            "seconds": round(self.seconds, 4),
            "changes": [change.as_json() for change in self.changes],
            "errors": [error_json(error) for error in self.errors],
        }


def error_json(error: PolicyError) -> Mapping[str, Any]:
    """An error for programs: where, which key, what was expected."""
    place = error.place
    return {
        "file": error.source,
        "line": place.line if place is not None else None,
        "column": place.column if place is not None else None,
        "key": error.key,
        "message": error.message,
        "text": str(error),
    }
