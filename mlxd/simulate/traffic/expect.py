"""Objectives: `schema: mlxd-expect/v1` and a list of what a simulation has to reach, read as
strictly as policies are.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, ClassVar, Self

from pydantic import Field

from mlxd.core.caller import Priority
from mlxd.policy import strict_yaml
from mlxd.policy import units as policy_units
from mlxd.policy.files import bytes_of
from mlxd.policy.load import PolicyError, PolicyErrors
from mlxd.policy.schema import Policy
from mlxd.policy.schema.base import Name
from mlxd.policy.strict_yaml import Path, Place
from mlxd.policy.units import Delay, Written, got
from mlxd.simulate.reading import Reading
from mlxd.simulate.traffic.report import EVERY, Figures, Side, seconds

SCHEMA = "mlxd-expect/v1"
_COMPARISON = re.compile(r"\s*(<=|<|>=|>|=)\s*(\S+)\s*")
_OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
}


@dataclass(frozen=True, slots=True)
class _Bound(Written):
    """A comparison with something that was written with its unit."""

    sign: str
    limit: float
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        found = _COMPARISON.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise cls._refused(value)
        try:
            return cls(found[1], cls._number(found[2]), f"{found[1]}{found[2]}")
        except ValueError:
            raise cls._refused(value) from None

    @classmethod
    def _number(cls, text: str) -> float:
        raise NotImplementedError

    @classmethod
    def shown(cls, value: float) -> str:
        """For people."""
        raise NotImplementedError

    def holds(self, found: float) -> bool:
        return bool(_OPERATORS[self.sign](found, self.limit))


class Time(_Bound):
    """On seconds."""

    expected: ClassVar[str] = 'a comparison with a duration, such as "<2s" or "<=300ms"'

    @classmethod
    def _number(cls, text: str) -> float:
        return float(Delay.parse(text))

    @classmethod
    def shown(cls, value: float) -> str:
        return seconds(value)


class Share(_Bound):
    """On a share of the requests."""

    expected: ClassVar[str] = 'a comparison with a share, such as "<1%"'

    @classmethod
    def _number(cls, text: str) -> float:
        return float(policy_units.Share.parse(text))

    @classmethod
    def shown(cls, value: float) -> str:
        return f"{value * 100:.3g} %"


class Number(_Bound):
    """On a count."""

    expected: ClassVar[str] = 'a comparison with a number, such as "<=10"'

    @classmethod
    def _number(cls, text: str) -> float:
        if not text.isdecimal():
            raise ValueError
        return float(text)

    @classmethod
    def shown(cls, value: float) -> str:
        return f"{value:g}"


class Objective(Policy):
    """One item of the list, as it is written: whom it is about, and what is to hold of them."""

    tenant: Name | None = None
    klass: Priority | None = Field(None, alias="class")
    model: Name | None = None
    wait_p50: Time | None = None
    wait_p99: Time | None = None
    ttft_p50: Time | None = None
    ttft_p99: Time | None = None
    refused: Share | None = None
    """With 429 or 503."""
    served: Share | None = None
    requests: Number | None = None
    loads: Number | None = None
    """Requests that waited for their model."""

    def bounds(self) -> Iterator[tuple[str, _Bound]]:
        for name in MEASURES:
            bound = getattr(self, name)
            if bound is not None:
                yield name, bound

    @property
    def whom(self) -> str:
        parts = [
            f"{word} {value}"
            for word, value in
            (("tenant", self.tenant), ("class", self.klass), ("model", self.model))
            if value is not None
        ]  # fmt: skip
        return ", ".join(parts) or "all requests"


_WHOM = ("tenant", "klass", "model")
MEASURES = tuple(name for name in Objective.model_fields if name not in _WHOM)


@dataclass(frozen=True, slots=True)
class Placed:
    """An objective and where it stands."""

    objective: Objective
    place: Place
    file: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one bound holds."""

    placed: Placed
    measure: str
    bound: _Bound
    found: float | None
    """None: there is nothing to measure, which holds nothing."""

    @property
    def holds(self) -> bool:
        return self.found is not None and self.bound.holds(self.found)

    def __str__(self) -> str:
        words = f"{self.placed.objective.whom}: {self.measure} {self.bound.text}"
        if self.found is None:
            return f"MISSED  {self._where} {words}: no such request was measured"
        found = self.bound.shown(self.found)
        if self.holds:
            return f"held    {self._where} {words}: {found}"
        off = self.bound.shown(abs(self.found - self.bound.limit))
        side = "over" if self.found >= self.bound.limit else "under"
        return f"MISSED  {self._where} {words}: {found}, {off} {side}"

    @property
    def _where(self) -> str:
        return f"{self.placed.file}:{self.placed.place.line}:"

    def as_json(self) -> dict[str, Any]:
        objective = self.placed.objective
        return {
            "file": self.placed.file,
            "line": self.placed.place.line,
            "tenant": objective.tenant,
            "class": objective.klass,
            "model": objective.model,
            "measure": self.measure,
            "expected": self.bound.text,
            "got": round(self.found, 6) if self.found is not None else None,
            "held": self.holds,
        }


def read(file: FilePath) -> tuple[Placed, ...]:
    """Raises PolicyErrors: all that is wrong with it."""
    try:
        raw = bytes_of(file)
    except OSError as error:
        raise PolicyErrors([PolicyError(str(file), f"cannot be read: {error.strerror}")]) from None
    return parse(raw, str(file))


def parse(raw: bytes, file: str) -> tuple[Placed, ...]:
    """As `read`, of bytes; `file` is how messages call them."""
    reading = Reading(file, strict_yaml.parse(raw))
    found = tuple(_objectives(reading))
    if reading.errors:
        raise PolicyErrors(sorted(reading.errors, key=lambda error: error.place or Place(1, 1)))
    return found


def judge(objectives: Sequence[Placed], after: Side) -> list[Verdict]:
    """Each bound of each objective, in their order."""
    verdicts = []
    for placed in objectives:
        one = placed.objective
        figures = after.select(one.tenant or EVERY, one.klass or EVERY, one.model or EVERY)
        for measure, bound in one.bounds():
            verdicts.append(Verdict(placed, measure, bound, _measured(figures, measure)))
    return verdicts


def _measured(figures: Figures, measure: str) -> float | None:
    if measure == "requests":
        return float(figures.requests)
    if not figures.requests:
        return None
    if measure == "refused":
        return figures.refused_share
    if measure == "served":
        return figures.served / figures.requests
    value = getattr(figures, measure)
    return float(value) if value is not None else None


def _objectives(reading: Reading) -> Iterator[Placed]:
    data = reading.document.data
    if data is None:
        return
    reading.known(data, ("schema", "expect"), ())
    if data.get("schema") != SCHEMA:
        found = f"got {got(data['schema'])}" if "schema" in data else "it is missing"
        reading.refuse(("schema",), f"expected {SCHEMA}, {found}")
    if "expect" not in data:
        reading.refuse(("expect",), "missing: expected a list of objectives")
        return
    for index, value in enumerate(reading.items(data["expect"], ("expect",), "objectives")):
        path: Path = ("expect", index)
        objective = reading.model(Objective, value, path)
        if objective is None:
            continue
        if not any(objective.bounds()):
            reading.refuse(path, f"it expects nothing: known here are {', '.join(MEASURES)}")
        yield Placed(objective, reading.document.place(path), reading.file)
