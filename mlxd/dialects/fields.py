"""A JSON object, field by field: null is absent, a wrong type is refused in the dialect's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mlxd.core.errors import InvalidRequest

Json = dict[str, Any]
Complaint = Callable[[str, str, Any], str]
"""(path of the field, what it must be, what it is) -> the dialect's words."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    return _KINDS.get(type(value), "object")


def with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def between(low: float, high: float) -> str:
    """The words for a range."""
    if low == INT64_MIN:
        return "must fit in 64 bits"
    if high == INT64_MAX:
        return f"must be at least {low:g}"
    return f"must be between {low:g} and {high:g}"


LONGEST_STOP = 1000
"""Characters: a worker looks for every stop string at every token."""


def check_stops(strings: Iterable[str], name: str) -> None:
    """`name`: what the dialect calls the field."""
    if any(len(text) > LONGEST_STOP for text in strings):
        words = f"{name} takes strings of at most {LONGEST_STOP} characters"
        raise InvalidRequest(words, param="stop")


class Fields:
    """One object of a request. Names that nobody asks for are ignored."""

    def __init__(self, values: Json, complaint: Complaint, path: str = "") -> None:
        self._values = values
        self._complaint = complaint
        self._path = path

    def path(self, name: str) -> str:
        """The full name of a field, such as `messages[0].content`."""
        return f"{self._path}.{name}" if self._path else name

    @property
    def values(self) -> Json:
        """The object, as it is."""
        return self._values

    def get(self, name: str) -> Any:
        """Whatever is there; None for null and for nothing."""
        return self._values.get(name)

    def wrong(self, name: str, expected: str) -> InvalidRequest:
        """To be raised for a field of the wrong type."""
        path = self.path(name)
        return InvalidRequest(self._complaint(path, expected, self.get(name)), param=path)

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.wrong(name, "string")

    def flag(self, name: str) -> bool | None:
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise self.wrong(name, "boolean")

    def number(
        self, name: str, low: float = -math.inf, high: float = math.inf, expected: str = "number"
    ) -> float | None:
        """A finite number within the range."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, expected)
        number = _finite(value)
        if number is None:
            raise self.wrong(name, expected)
        self._check_range(name, number, low, high)
        return number

    def integer(
        self,
        name: str,
        low: int = INT64_MIN,
        high: int = INT64_MAX,
        *,
        truncate: bool = False,
    ) -> int | None:
        """An integer within the range: 3.0 is one, and 3.5 is 3 where fractions are cut."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, float) and math.isfinite(value) and (truncate or value.is_integer()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "integer")
        self._check_range(name, value, low, high)
        return value

    def array(self, name: str, expected: str = "array") -> list[Any] | None:
        value = self.get(name)
        if value is None or isinstance(value, list):
            return value
        raise self.wrong(name, expected)

    def texts(self, name: str, expected: str = "array of strings") -> tuple[str, ...]:
        """An array of strings; empty for nothing."""
        values = self.array(name, expected) or []
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name, expected)
        return tuple(values)

    def mapping(self, name: str) -> Json | None:
        """An object, as it is."""
        value = self.get(name)
        if value is None or isinstance(value, dict):
            return value
        raise self.wrong(name, "object")

    def fields(self, name: str) -> Fields | None:
        """An object, to be read field by field."""
        value = self.mapping(name)
        return None if value is None else self._inner(value, self.path(name))

    def each(self, name: str) -> Iterator[Fields]:
        """An array of objects, each to be read field by field."""
        for index, value in enumerate(self.array(name) or ()):
            path = f"{self.path(name)}[{index}]"
            if not isinstance(value, dict):
                raise InvalidRequest(self._complaint(path, "object", value), param=path)
            yield self._inner(value, path)

    def _inner(self, values: Json, path: str) -> Fields:
        return type(self)(values, self._complaint, path)

    def _check_range(self, name: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            path = self.path(name)
            if value > high == INT64_MAX:
                low = INT64_MIN  # it is not what was passed
            raise InvalidRequest(f"{path} {between(low, high)}", param=path)


class FoldedFields(Fields):
    """The same, with names in any case, as Go's decoder takes them; the exact name wins."""

    def __init__(self, values: Json, complaint: Complaint, path: str = "") -> None:
        folded = {name.lower(): value for name, value in values.items()}
        super().__init__(folded | values, complaint, path)


def _finite(value: float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
