"""Which classes are refused now, while others are served: for memory, or for latency. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mlxd.control.adaptive import Adaptive
from mlxd.control.applicant import Applicant
from mlxd.control.retry import retry_after
from mlxd.control.watermarks import Level
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.errors import Shed
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.strict_yaml import dotted


@dataclass(frozen=True, slots=True)
class Strain:
    """How full memory is, as the guard says it."""

    level: Level
    """The highest mark that holds."""
    share: float
    words: str
    """Such as `memory is at 96.1 %, ...`."""
    retry_after: float
    """Seconds until memory is looked at again."""


class Shedding:
    """Judges new requests by their class. What waits or runs already is left alone."""

    def __init__(self, adaptive: Adaptive) -> None:
        self._adaptive = adaptive
        self.strain: Strain | None = None
        """While it is set, a mark holds whose actions include shed_low_priority."""

    def for_memory(self, applicant: Applicant) -> Shed | None:
        """What a new request is refused with, whether a slot is free or not; None: it is not."""
        strain, klass = self.strain, applicant.klass
        if strain is None or klass not in classes_shed(applicant.policies, strain.level):
            return None
        mark = _shed_at(applicant.policies, klass)
        assert mark is not None
        return Shed(
            f"{strain.words}: new requests of class {klass} are refused"
            " (server busy, please try again)",
            retry_after=retry_after(applicant.policies, strain.retry_after),
            policy=applicant.policies.line(dotted(("clients", "priorities", klass, "shed_at"))),
            numbers={
                "rule": shed_rule(klass),
                "class": klass,
                "mark": mark.word,
                "level": strain.level.word,
                "share": round(strain.share, 4),
            },
            would_pass=f"a request of {_kept(applicant.policies, strain.level)}, or any once memory"
            f" has left the {mark.word} mark",
        )

    def for_latency(self, applicant: Applicant, now: float) -> Shed | None:
        """What a new request is refused with that cannot run at once; None: it is not."""
        return self._adaptive.shed(applicant, now)


def shed_rule(klass: Priority) -> str:
    """What metrics and policy tests call it."""
    return f"shed:{klass}"


def shed_rules(policies: PolicySet) -> list[str]:
    """The rules by which a class may be refused."""
    marks = policies.memory.watermarks
    strained = any(
        "shed_low_priority" in mark.actions
        for mark in (marks.warning, marks.critical, marks.emergency)
    )
    found = classes_shed(policies, Level.EMERGENCY) if strained else []
    late = ("medium", "low") if policies.limits.adaptive.enabled else ()
    return [shed_rule(klass) for klass in PRIORITIES if klass in found or klass in late]


def classes_shed(policies: PolicySet, level: Level) -> list[Priority]:
    """Classes whose `shed_at` is reached at this level, from the highest on."""
    found = ((klass, _shed_at(policies, klass)) for klass in PRIORITIES)
    return [klass for klass, mark in found if mark is not None and level >= mark]


def _shed_at(policies: PolicySet, klass: Priority) -> Level | None:
    """None: never."""
    written: str = getattr(policies.clients.priorities, klass).shed_at
    return None if written == "never" else Level[written.upper()]


def _kept(policies: PolicySet, level: Level) -> str:
    shed = classes_shed(policies, level)
    kept = [klass for klass in PRIORITIES if klass not in shed]
    return f"class {' or '.join(kept)}" if kept else "no class"
