"""What two ways of serving the same traffic came to, by tenant and class: a table for people, JSON
for programs.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlxd.core.caller import PRIORITIES
from mlxd.core.counts import plural
from mlxd.server.errors import STATUS
from mlxd.simulate.traffic.outcome import Outcome

EVERY = "all"
"""Stands for every tenant, or class."""
Figure = Literal["wait_p50", "wait_p99", "ttft_p50", "ttft_p99"]
FIGURES: tuple[Figure, ...] = ("wait_p50", "wait_p99", "ttft_p50", "ttft_p99")
_REFUSING = (429, 503)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one group of requests."""

    requests: int
    served: int
    wait_p50: float | None
    """Seconds; None: nothing was measured."""
    wait_p99: float | None
    ttft_p50: float | None
    ttft_p99: float | None
    loads: int
    """Requests that waited for their model."""
    codes: Counter[str]
    """Of those that were not served."""

    @property
    def refused(self) -> int:
        """With 429 or 503."""
        return sum(number for code, number in self.codes.items() if is_refusal(code))

    @property
    def refused_share(self) -> float:
        return self.refused / self.requests if self.requests else 0.0

    def as_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {name: _rounded(getattr(self, name)) for name in FIGURES}
        return {
            "requests": self.requests,
            "served": self.served,
            **figures,
            "loads": self.loads,
            "refused": self.refused,
            "codes": dict(sorted(self.codes.items())),
        }


def is_refusal(code: str) -> bool:
    return STATUS.get(code) in _REFUSING


def figures_of(outcomes: Iterable[Outcome]) -> Figures:
    outcomes = list(outcomes)
    waits = sorted(one.wait for one in outcomes if one.wait is not None)
    ttfts = sorted(one.ttft for one in outcomes if one.ttft is not None)
    return Figures(
        requests=len(outcomes),
        served=sum(not one.code for one in outcomes),
        wait_p50=percentile(waits, 0.5),
        wait_p99=percentile(waits, 0.99),
        ttft_p50=percentile(ttfts, 0.5),
        ttft_p99=percentile(ttfts, 0.99),
        loads=sum(one.loaded for one in outcomes),
        codes=Counter(one.code for one in outcomes if one.code),
    )


def percentile(rising: Sequence[float], share: float) -> float | None:
    """The nearest rank; None of nothing."""
    if not rising:
        return None
    return rising[max(0, math.ceil(share * len(rising)) - 1)]


Group = tuple[str, str]
"""A tenant and a class; either may be EVERY."""


@dataclass(frozen=True, slots=True)
class Side:
    """Before, or after."""

    name: str
    """Such as `as it was`."""
    outcomes: list[Outcome]
    loads: int
    evictions: int
    would_deny: Counter[str] = field(default_factory=Counter)

    def groups(self) -> dict[Group, Figures]:
        """Every tenant's classes, and all together."""
        found: dict[Group, list[Outcome]] = defaultdict(list)
        for one in self.outcomes:
            found[one.tenant, one.klass].append(one)
        groups = {group: figures_of(of) for group, of in found.items()}
        return groups | {(EVERY, EVERY): figures_of(self.outcomes)}

    def select(self, tenant: str, klass: str, model: str) -> Figures:
        """Of those that are of all three; EVERY is any."""
        return figures_of(
            one
            for one in self.outcomes
            if tenant in (EVERY, one.tenant)
            and klass in (EVERY, one.klass)
            and model in (EVERY, one.model)
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same traffic, before and after."""

    before: Side
    after: Side
    seconds: float
    """That the log covers."""
    warnings: tuple[str, ...] = ()

    def rows(self) -> list[tuple[Group, Figures, Figures]]:
        """By tenant, then class; all together last."""
        before, after = self.before.groups(), self.after.groups()
        none = figures_of(())
        groups = sorted(before | after, key=_place)
        return [(one, before.get(one, none), after.get(one, none)) for one in groups]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{plural(len(self.after.outcomes), 'request')} in {_span(self.seconds)}"
        yield f"before: {self.before.name}; after: {self.after.name}"
        yield ""
        yield from _aligned([_HEAD, *self._cells()])
        yield ""
        yield (
            f"loads {self.before.loads} -> {self.after.loads}, "
            f"evictions {self.before.evictions} -> {self.after.evictions}"
        )
        for rule, number in sorted(self.after.would_deny.items()):
            yield f"{rule}, on trial, would have refused {number}"
        for warning in self.warnings:
            yield f"warning: {warning}"

    def _cells(self) -> Iterator[list[str]]:
        for (tenant, klass), before, after in self.rows():
            yield [tenant, klass, "before", *_shown(before)]
            yield ["", "", "after", *_shown(after)]

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": len(self.after.outcomes),
            "seconds": round(self.seconds, 3),
            "before": _side_json(self.before),
            "after": _side_json(self.after),
            "groups": [
                {"tenant": tenant, "class": klass, "before": b.as_json(), "after": a.as_json()}
                for (tenant, klass), b, a in self.rows()
            ],
            "warnings": list(self.warnings),
        }


_HEAD = [
    "tenant", "class", "", "requests", "served", "wait p50", "wait p99", "ttft p50", "ttft p99",
    "loads", "not served",
]  # fmt: skip
_RIGHT = range(3, 10)
"""Columns of numbers."""


def _place(group: Group) -> tuple[bool, str, int]:
    tenant, klass = group
    rank = PRIORITIES.index(klass) if klass in PRIORITIES else len(PRIORITIES)
    return tenant == EVERY, tenant, rank


def _shown(figures: Figures) -> list[str]:
    codes = [f"{code} {number}" for code, number in figures.codes.most_common()]
    return [
        str(figures.requests),
        str(figures.served),
        *(seconds(getattr(figures, name)) for name in FIGURES),
        str(figures.loads),
        ", ".join(codes) or "-",
    ]


def seconds(value: float | None) -> str:
    """For people."""
    if value is None:
        return "-"
    if value == 0:
        return "0 s"
    return f"{value * 1000:.3g} ms" if value < 0.9995 else f"{value:.4g} s"


def _span(length: float) -> str:
    if length < 120:
        return f"{length:.0f} s"
    return f"{length / 60:.0f} min" if length < 7200 else f"{length / 3600:.1f} h"


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "loads": side.loads,
        "evictions": side.evictions,
        "would_deny": dict(sorted(side.would_deny.items())),
    }


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if value is not None else None
