"""Durations, sizes and ratios as an operator writes them: always with their unit.

Each is a plain number (seconds, bytes, a fraction) that remembers how it was written: `str(d)` is
the written form, arithmetic gives plain numbers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mlxd.policy.strict_yaml import scalar

_NUMBER = r"(?:[0-9]+(?:\.[0-9]+)?)"
_LONGEST = 60
"""Characters of a refused value that a message repeats."""
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_ABOVE_ZERO = "(?=.*[1-9])"
_DURATION_PATTERN = "(?=.)" + "".join(
    rf"(?:{_NUMBER}{unit})?" for unit in ("d", "h", "m", "s", "ms")
)
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_YEAR = 366 * 86400.0
_SIZE = re.compile(rf"({_NUMBER})(B|[kKMGT]B|[KMGT]iB)")
_BYTES = {"B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_BYTES["kB"] = 1000
_RATIO = re.compile(rf"({_NUMBER})%")


_SPECIAL = re.compile(r"[:#](\s|$)|\s#|^[-?:,\[\]{}#&*!|>'\"%@`]|[\n\t,\[\]{}]|^\s|\s$|^<<$")


def written(value: Any) -> str:
    """A value as it would be written in YAML, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        plain = isinstance(scalar(value), str) and not _SPECIAL.search(value)
        return str(value) if plain and value.isprintable() else _quoted(value)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        value = {info.alias or name: getattr(value, name) for name, info in fields}
    if isinstance(value, Mapping):
        inner = ", ".join(f"{written(key)}: {written(item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(written(item) for item in value)}]"
    return str(value)


def shown(value: Any) -> str:
    """As `written`, without what may be a secret."""
    return written(value.public if isinstance(value, Written) else value)


def _quoted(text: str) -> str:
    """In double quotes, everything that a terminal or YAML would act on escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escaped(char) for char in quoted)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def got(value: Any) -> str:
    """A refused value, as a message quotes it."""
    if isinstance(value, str):
        return _quoted(_cut(value))
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, Sequence):
        return "a list" if value else "an empty list"
    return _cut(written(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


class Refused(ValueError):
    """Says what was expected; `hint`, the end of it, how to write it, where that is known."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message + hint)
        self.hint = hint


class Written:
    """Validated by its own `parse`, whose ValueError says what was expected and how to write it."""

    unit: ClassVar[str]
    expected: ClassVar[str]
    pattern: ClassVar[str]
    """An ECMA regular expression that all it takes as text matches, for editors."""
    numbers: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """The bounds, as JSON Schema names them, of the numbers it takes; empty if none."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        raise NotImplementedError

    @property
    def public(self) -> object:
        """What anybody may see of it."""
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.parse)

    @classmethod
    def _refused(cls, value: object, hint: str = "") -> ValueError:
        hint = hint if len(hint) <= 2 * _LONGEST else ""  # it repeats what was written
        return Refused(f"expected {cls.expected}, got {got(value)}", hint)

    @classmethod
    def _takes(cls, text: str) -> bool:
        try:
            cls.parse(text)
        except ValueError:
            return False
        return True

    @classmethod
    def _with_unit(cls, value: object, *units: str) -> str:
        """What to write for a bare number, as far as that is taken."""
        ways = [way for unit in units if cls._takes(way := f"{value}{unit}")]
        return f": write the unit, for instance {' or '.join(ways)}" if ways else ""

    @classmethod
    def _unit_hint(cls, value: object, units: str) -> str:
        """What to write, for text that begins like a number."""
        pattern = rf"({_NUMBER}) ?([A-Za-zµ%]*)"
        match = re.fullmatch(pattern, value) if isinstance(value, str) else None
        if match is None:
            return ""
        number, unit = match.groups()
        allowed = units.replace(" or ", ", ").split(", ")
        if not unit:
            some = any(cls._takes(number + known) for known in allowed)
            return f": write the unit: {units}" if some else ""
        near = [known for known in allowed if known.casefold() == unit.casefold()]
        if near:
            return f": write {number}{near[0]}" if cls._takes(number + near[0]) else ""
        return f': "{unit}" is not one of {units}'


class Duration(Written, float):
    """A time, in seconds, above zero."""

    unit = "duration"
    expected = "a duration above zero such as 300s, 5m, 250ms or 1h30m"
    pattern = f"^{_ABOVE_ZERO}{_DURATION_PATTERN}$"
    zero: ClassVar[bool] = False
    written: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        if isinstance(value, Duration):
            return cls._made(float(value), value.written)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise cls._refused(value, cls._with_unit(value, "s", "ms"))
        if not isinstance(value, str):
            raise cls._refused(value)
        return cls._made(cls._seconds(value), value)

    @classmethod
    def _seconds(cls, text: str) -> float:
        if not _DURATION.fullmatch(text):
            raise cls._refused(text, cls._unit_hint(text, "ms, s, m, h or d"))
        found = _DURATION_PART.findall(text)
        sizes = [_SECONDS[unit] for _, unit in found]
        if sizes != sorted(set(sizes), reverse=True):
            raise cls._refused(text, ": units go from large to small, each once")
        seconds = round(math.fsum(float(number) * _SECONDS[unit] for number, unit in found), 9)
        if seconds > _YEAR:
            raise cls._refused(text, ": at most 366d")
        return seconds

    @classmethod
    def _made(cls, seconds: float, written: str) -> Self:
        if seconds == 0 and not cls.zero:
            raise cls._refused(written)
        made = cls(seconds)
        made.written = written
        return made

    def __str__(self) -> str:
        return getattr(self, "written", f"{float(self):g}s")


class LongDuration(Duration):
    """A time, in seconds, of a second or more."""

    expected = "a duration of at least 1s such as 30s, 5m or 1h30m"

    @classmethod
    def _made(cls, seconds: float, written: str) -> Self:
        if seconds < 1:
            raise cls._refused(written)
        return super()._made(seconds, written)


class Delay(Duration):
    """A time, in seconds, that may be zero."""

    expected = "a duration such as 0s, 300s, 5m or 250ms"
    pattern = f"^{_DURATION_PATTERN}$"
    zero = True


class KeepFor(Delay):
    """A time, in seconds, that may be zero or for ever (`never` ends; infinity)."""

    expected = "never, or a duration such as 0s, 5m or 1h30m"
    pattern = f"^(?:never|{_DURATION_PATTERN})$"

    @classmethod
    def parse(cls, value: Any) -> Self:
        if value == "never":
            return cls._made(math.inf, "never")
        return super().parse(value)


class Size(Written, int):
    """An amount of memory, in bytes, above zero."""

    unit = "size"
    expected = "a size above zero such as 16KiB, 8MiB or 1GB"
    pattern = f"^{_ABOVE_ZERO}{_NUMBER}(?:B|[kKMGT]B|[KMGT]iB)$"
    written: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        if isinstance(value, Size):
            return cls._made(int(value), value.written)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise cls._refused(value, cls._with_unit(value, "B", "MiB"))
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise cls._refused(value, cls._unit_hint(value, "B, KiB, MiB, GiB, KB, MB or GB"))
        count = min(float(match[1]) * _BYTES[match[2]], 2.0**63)  # of many digits it is infinite
        return cls._made(int(count), value)

    @classmethod
    def _made(cls, count: int, written: str) -> Self:
        if not 0 < count < 2**63:
            raise cls._refused(written)
        made = cls(count)
        made.written = written
        return made

    def __str__(self) -> str:
        return getattr(self, "written", f"{int(self)}B")


class Ratio(Written, float):
    """A share of a whole, as a fraction above 0 and up to 1."""

    unit = "ratio"
    expected = "a ratio above zero such as 85% or 0.85"
    pattern = f"^{_ABOVE_ZERO}{_NUMBER}%$"
    numbers = MappingProxyType({"exclusiveMinimum": 0, "maximum": 1})
    zero: ClassVar[bool] = False
    written: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        if isinstance(value, Ratio):
            return cls._made(float(value), value.written)
        if isinstance(value, str) and (match := _RATIO.fullmatch(value)):
            return cls._made(float(match[1]) / 100, value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise cls._refused(value, cls._unit_hint(value, "%"))
        if value > 1:
            raise cls._refused(value, f": write the unit, {value}%" if value <= 100 else "")
        return cls._made(float(value), str(value))

    @classmethod
    def _made(cls, fraction: float, written: str) -> Self:
        if not (fraction > 0 or (cls.zero and fraction == 0)):
            raise cls._refused(written)
        if fraction > 1:
            raise cls._refused(written, ": at most 100%")
        made = cls(fraction)
        made.written = written
        return made

    def __str__(self) -> str:
        return getattr(self, "written", f"{float(self) * 100:g}%")


class Share(Ratio):
    """A share of a whole that may be none of it."""

    expected = "a ratio such as 0%, 20% or 0.2"
    pattern = f"^{_NUMBER}%$"
    numbers = MappingProxyType({"minimum": 0, "maximum": 1})
    zero = True
