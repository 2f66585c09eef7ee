"""How many may run at one time, as measured latencies have it: additive increase, multiplicative
decrease. Pure: the time is a parameter. docs/decisions/0012 says what is measured, and why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlxd.control.applicant import Applicant
from mlxd.control.retry import retry_after
from mlxd.core.caller import PRIORITIES, Priority
from mlxd.core.errors import Shed
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.limits import Adaptive as Aims

Aim = Literal["ttft", "token_gap"]
AIMS: tuple[Aim, ...] = ("ttft", "token_gap")
_WORDS: Mapping[Aim, str] = {"ttft": "the time to first token", "token_gap": "the time per token"}
_FEWER = 0.75
_KEPT = 1024
"""Samples of one aim in one interval; of more, an even selection."""


@dataclass(frozen=True, slots=True)
class Missed:
    """An aim that the last interval missed."""

    aim: Aim
    measured: float
    """Seconds, at `limits.adaptive.percentile`."""
    wanted: float


class Adaptive:
    """Finds the number of slots. While it is not enabled it allows what it is asked for."""

    def __init__(self, policies: PolicySet) -> None:
        self._policies = policies
        self._samples: dict[Aim, _Samples] = {aim: _Samples() for aim in AIMS}
        self._measured: dict[Aim, float] = {}
        """Of the last interval that had samples, and of those since in which something ran."""
        self._began: float | None = None
        self._running = self._most = self._least = 0
        self._again = False
        """The aims were missed with the fewest slots, and not for the first time."""
        self._limit = self._top
        self.missed_total: Counter[Aim] = Counter()
        """Intervals that missed an aim."""

    @property
    def enabled(self) -> bool:
        return self._aims.enabled

    def apply(self, new: PolicySet) -> None:
        """New policies are in force: they hold at once. What is switched on begins with as many
        slots as it allows.
        """
        fresh = new.limits.adaptive.enabled and not self.enabled
        self._policies = new
        if fresh or not self.enabled:
            self._forget()
            self._limit = self._top
        self._limit = min(max(self._limit, self._bottom), self._top)

    def refresh(self, same: PolicySet) -> None:
        """The same values in other places: what is told from now on names those."""
        self._policies = same

    def observe(self, now: float, *, ttft: float | None = None, gap: float | None = None) -> bool:
        """What was measured: seconds to a first token, seconds between two tokens. As `look`."""
        changed = self.look(now)
        if self.enabled:
            if ttft is not None:
                self._samples["ttft"].add(ttft)
            if gap is not None:
                self._samples["token_gap"].add(gap)
        return changed

    def look(self, now: float) -> bool:
        """End the intervals that are over; whether another number may run now, or other classes are
        refused.
        """
        if not self.enabled:
            return False
        self._began = now if self._began is None else self._began
        over = math.floor((now - self._began) / float(self._aims.interval))
        before = (self._limit, self.sheds) if over > 0 else None
        for _ in range(min(over, 2)):  # what followed the first one had no samples
            self._judge()
        self._began += max(0, over) * float(self._aims.interval)
        return before is not None and before != (self._limit, self.sheds)

    def ran(self, running: int) -> None:
        """So many run now: to be told whenever that has changed."""
        self._running = running
        self._most, self._least = max(self._most, running), min(self._least, running)

    def limit(self, most: int) -> int:
        """Of so many slots those that may be used."""
        return min(most, self._limit) if self.enabled else most

    @property
    def key(self) -> str:
        """The policy to change for more slots than it allows now."""
        missed = self.missed()
        if self._limit >= self._aims.max:
            return "limits.adaptive.max"
        return f"limits.adaptive.{missed[0].aim if missed else 'enabled'}"

    def missed(self) -> list[Missed]:
        """The aims in force that the last interval missed."""
        if not self.enabled:
            return []
        wanted = {aim: float(getattr(self._aims, aim)) for aim in AIMS}
        return [
            Missed(aim, self._measured[aim], wanted[aim])
            for aim in AIMS
            if self._measured.get(aim, 0.0) > wanted[aim]
        ]

    @property
    def sheds(self) -> tuple[Priority, ...]:
        """Classes whose new requests are refused unless they can run at once; never high."""
        if not self.missed():
            return ()
        return ("medium", "low") if self._again else ("low",)

    def shed(self, applicant: Applicant, now: float) -> Shed | None:
        """What a request that cannot run at once is refused with, if it is."""
        klass = applicant.klass
        if klass not in self.sheds:
            return None
        missed = self.missed()[0]
        higher = PRIORITIES[: PRIORITIES.index(self.sheds[0])]
        left = self._began + float(self._aims.interval) - now if self._began is not None else 0.0
        return Shed(
            f"{_WORDS[missed.aim]} is {missed.measured:.3g} s, and {missed.wanted:g} s is aimed"
            f" for: requests of class {klass} do not wait now (server busy, please try again)",
            retry_after=retry_after(self._policies, left),
            policy=self._policies.line(f"limits.adaptive.{missed.aim}"),
            numbers={
                "rule": f"shed:{klass}",
                "measured": round(missed.measured, 4),
                "aim": missed.wanted,
                "limit": self._limit,
                "class": klass,
            },
            would_pass=f"a request of class {' or '.join(higher)}, or one that finds a free slot",
        )

    def as_json(self) -> dict[str, object]:
        """For /health."""
        return {
            "limit": self.limit(self._policies.limits.concurrency.max_in_flight),
            "measured": {aim: round(value, 4) for aim, value in self._measured.items()},
            "missed": [one.aim for one in self.missed()],
            "sheds": list(self.sheds),
        }

    # -- inside

    @property
    def _aims(self) -> Aims:
        return self._policies.limits.adaptive

    @property
    def _top(self) -> int:
        return min(self._aims.max, self._policies.limits.concurrency.max_in_flight)

    @property
    def _bottom(self) -> int:
        return min(self._aims.min, self._top)

    def _judge(self) -> None:
        """An interval is over. An aim without samples, while something ran, stands as it did."""
        before = bool(self.missed())
        found = {aim: of.percentile(float(self._aims.percentile)) for aim, of in self._each()}
        self._measured = self._measured | found if found or self._most else {}
        late = [one for one in self.missed() if one.aim in found]
        self.missed_total.update(one.aim for one in late)
        if late:
            self._too_slow(before)
        elif found and not self.missed() and self._most >= self._limit:
            self._limit = min(self._limit + 1, self._top)
        self._again = self._again and bool(self.missed())
        for samples in self._samples.values():
            samples.clear()
        self._most = self._least = self._running

    def _each(self) -> list[tuple[Aim, _Samples]]:
        return [(aim, samples) for aim, samples in self._samples.items() if samples]

    def _too_slow(self, before: bool) -> None:
        """While more run than may, what was measured says nothing of the present limit."""
        self._again = before and self._limit <= self._bottom
        if self._least <= self._limit:
            self._limit = max(self._bottom, math.floor(self._limit * _FEWER))

    def _forget(self) -> None:
        self._samples = {aim: _Samples() for aim in AIMS}
        self._measured = {}
        self._began = None
        self._again = False
        self._most = self._least = self._running


class _Samples:
    """Those of one interval, in bounded memory: when it is full every second one goes, and of what
    follows only each second, fourth, eighth and so on is taken.
    """

    def __init__(self) -> None:
        self._values: list[float] = []
        self._stride = 1
        self._seen = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._seen += 1
        if self._seen % self._stride:
            return
        self._values.append(value)
        if len(self._values) > _KEPT:
            del self._values[::2]
            self._stride *= 2

    def percentile(self, share: float) -> float:
        """The nearest rank."""
        rank = math.ceil(share * len(self._values)) - 1
        return sorted(self._values)[max(0, rank)]

    def clear(self) -> None:
        self._values.clear()
        self._stride, self._seen = 1, 0
