"""What admission has decided since the start, counted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from mlxd.control.applicant import Applicant
from mlxd.control.place import Place
from mlxd.control.rules import rule_of
from mlxd.core.caller import Priority
from mlxd.core.errors import MlxdError, Overloaded

_KEPT_WAITS = 1000


class Totals:
    """Counts since the start."""

    def __init__(self) -> None:
        self.processed = 0
        """Those that ran, and are over."""
        self.rejected = 0
        """Those refused with 503 that a slot, or a place in the queue, would have served."""
        self.queued = 0
        """Those that had to wait."""
        self.expired = 0
        """Of those, the ones that waited as long as they may."""
        self.by_class: Counter[Priority] = Counter()
        """Those that got a slot."""
        self.refused: Counter[str] = Counter()
        """By rule; see `rule_of`."""
        self.would_deny: Counter[str] = Counter()
        """What rules in mode dry_run would have refused."""
        self.on_started: Callable[[Priority, float], None] = _untold
        """Told the class of each that gets a slot, and how long it waited."""
        self._waits: deque[float] = deque(maxlen=_KEPT_WAITS)

    def note_came(self, place: Place) -> None:
        """It was let in, or waits."""
        if place.started is None:
            self.queued += 1
        else:
            self.note_started(place)

    def note_started(self, place: Place) -> None:
        self.by_class[place.klass] += 1
        waited = (place.started or place.came) - place.came
        self._waits.append(waited)
        self.on_started(place.klass, waited)

    def note_ended(self) -> None:
        self.processed += 1

    def note_expired(self) -> None:
        self.expired += 1
        self.rejected += 1
        self.refused["queue"] += 1

    def note_turned_away(self, error: MlxdError, applicant: Applicant) -> None:
        rule = rule_of(error, applicant)
        if rule:
            self.refused[rule] += 1
        if isinstance(error, Overloaded):
            self.rejected += 1

    def wait(self, share: float) -> float:
        """Seconds that this share of those that got a slot last waited at most."""
        waits = sorted(self._waits)
        return waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0


def _untold(klass: Priority, waited: float) -> None:
    """For those who only count."""
