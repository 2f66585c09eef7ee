"""What a step may expect, and whether that is what happened."""

from __future__ import annotations

import ipaddress
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field

from mlxd.policy.schema import Policy
from mlxd.policy.strict_yaml import Path
from mlxd.policy.units import Written, got, written
from mlxd.server.errors import STATUS
from mlxd.simulate.layers import is_key
from mlxd.simulate.reading import suggestion

_COMPARISON = re.compile(r"(>=|<=|=|>|<)\s*(-?[0-9]+(?:\.[0-9]+)?)")
_OPERATORS = {
    "=": operator.eq,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_HEADERS = ("Retry-After", "X-Mlxd-Code", "X-Mlxd-Policy-Key")
"""What `error_response` sets and does not depend on where a file stands."""


@dataclass(frozen=True, slots=True)
class Condition(Written):
    """On a header: a comparison with a number, or the exact text."""

    expected: ClassVar[str] = 'a number, text or a comparison such as ">=1"'
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise cls._refused(value)
        return cls(str(value))

    def holds(self, found: str | None) -> bool:
        comparison = _COMPARISON.fullmatch(self.text)
        if comparison is None or found is None:
            return found == self.text
        sign, number = comparison.groups()
        try:
            return bool(_OPERATORS[sign](float(found), float(number)))
        except ValueError:
            return False


def _status(number: int) -> int:
    if number not in {200, *STATUS.values()}:
        raise ValueError("expected a status that mlxd answers with, such as 200, 429 or 503")
    return number


def _one_of(known: Sequence[str], what: str, text: str) -> str:
    if text not in known:
        raise ValueError(f"expected {what}, got {got(text)}; {suggestion(text, known)}")
    return text


def _code(text: str) -> str:
    return _one_of(tuple(STATUS), "a code", text)


def _header(text: str) -> str:
    return _one_of(_HEADERS, "a header that a refusal has", text)


def _policy_key(text: str) -> str:
    if not is_key(text):
        raise ValueError("expected a policy such as limits.concurrency.max_in_flight")
    return text


def _address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("expected an IP address such as 10.0.0.1 or fd00::1") from None
    return text


Status = Annotated[int, AfterValidator(_status)]
Code = Annotated[str, AfterValidator(_code)]
HeaderName = Annotated[str, AfterValidator(_header)]
PolicyKey = Annotated[str, AfterValidator(_policy_key)]
Address = Annotated[str, AfterValidator(_address)]
Count = Annotated[int, Field(ge=0)]
Rules = Annotated[tuple[str, ...], Field(strict=False)]


@dataclass(frozen=True, slots=True)
class InOrder:
    """Requests in order. One is expected by its name or by its class."""

    each: tuple[tuple[str, str], ...]

    def agrees(self, wanted: Sequence[str] | Mapping[str, int]) -> bool:
        """With a list of them, or with how many there are of each."""
        if isinstance(wanted, Mapping):
            counts = {word: sum(word in one for one in self.each) for word in wanted}
            return counts == wanted and sum(wanted.values()) == len(self.each)
        return len(wanted) == len(self.each) and all(map(operator.contains, self.each, wanted))

    def written(self, wanted: Sequence[str] | Mapping[str, int]) -> str:
        words = [name or klass for name, klass in self.each]
        return written(dict(Counter(words)) if isinstance(wanted, Mapping) else words)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request or other deed of a step came to."""

    facts: Mapping[str, Any]
    """By the names that `expect` has for them."""
    words: str = ""
    """More about it, for the message of a failure."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first thing of a step that was not as expected."""

    path: Path
    """Of what was expected, below the step."""
    expected: str
    got: str

    def __str__(self) -> str:
        return f"expected {self.expected}, got {self.got}"


class Failed(Exception):
    """A step that fails whatever it expects."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(str(mismatch))
        self.mismatch = mismatch


class Expect(Policy):
    """The least that any step may expect. What is not written is not looked at."""

    running: Count | None = None
    """Requests running after the last of them."""
    queued: Count | None = None
    """Requests waiting then."""
    queue_timeout: Count | None = None
    """Those that have waited too long and were refused, since the step before."""
    started: Rules | Mapping[str, Count] | None = None
    """Those that had waited and run since: in order, or how many of each."""

    def disagreement(self, outcome: Outcome, last: bool) -> tuple[str, str, str] | None:
        """The first key that is otherwise, what it should be and what it is."""
        for name, wanted in self._wanted(last):
            found = outcome.facts[name]
            if not _agree(wanted, found):
                more = f" ({outcome.words})" if outcome.words and name != "message" else ""
                return name, f"{name} {_shown(wanted)}", f"{_found(wanted, found)}{more}"
        return None

    def _wanted(self, last: bool) -> Iterator[tuple[str, Any]]:
        """In the order in which it is judged: at the end what any step has, of the last outcome
        only.
        """
        own = [name for name in type(self).model_fields if name not in _OF_ALL]
        for name in [*own, *Expect.model_fields] if last else own:
            value = getattr(self, name)
            if value is not None and self.judges(name):
                yield name, value

    def judges(self, name: str) -> bool:
        """Whether it looks at that key."""
        return name != "count"


class ExpectAnswers(Expect):
    """What requests expect: one for all of them, or a list of some, `count` after `count`."""

    count: Annotated[int, Field(ge=1)] | None = None
    """In a list; 1 by itself."""
    status: Status = 200
    """Requests are expected to pass unless it is written, or that they wait."""
    waiting: bool | None = None
    position: Annotated[int, Field(ge=1)] | None = None
    """In the queue, as it came: 1 goes next."""
    code: Code | None = None
    """The reason of a refusal."""
    policy: PolicyKey | None = None
    """The policy that refused."""
    message: str | None = None
    """The words of a refusal."""
    header: Mapping[HeaderName, Condition] | None = None
    """Of a refusal."""
    would_deny: Rules | None = None
    """The rules in mode dry_run that would have refused."""

    def judges(self, name: str) -> bool:
        waits = self.waiting or self.position is not None
        return super().judges(name) and not (name == "status" and waits)


class ExpectEdit(Expect):
    """What an edit expects."""

    refused: bool = False
    """Whether the edit is invalid and changes nothing."""


class ExpectMemory(Expect):
    """What a look at memory expects."""

    evicted: Rules | None = None
    """The models that it drops."""
    loads: Literal["blocked", "allowed"] | None = None
    admission: Literal["stopped", "open"] | None = None
    level: Literal["normal", "warning", "critical", "emergency"] | None = None
    """The mark that is acted by."""
    health: Literal["healthy", "degraded", "warning", "critical"] | None = None


_OF_ALL = frozenset(Expect.model_fields)
Placed = tuple[Path, Expect]
"""An expectation and where it stands below its step; where it is not written, what it is of."""


def mismatch(outcomes: Sequence[Outcome], expects: Sequence[Placed]) -> Mismatch | None:
    """The first disagreement of what happened with what was expected."""
    seen = 0
    for path, expect in expects:
        alone = len(expects) == 1
        part = outcomes[seen:] if alone else outcomes[seen : seen + counted(expect)]
        for number, outcome in enumerate(part, start=1):
            found = expect.disagreement(outcome, last=number == len(part))
            if found is not None:
                name, wanted, was = found
                which = f", request {seen + number} of {len(outcomes)}" if len(outcomes) > 1 else ""
                return Mismatch((*path, name), wanted, f"{was}{which}")
        seen += len(part)
    return None


def counted(expect: Expect) -> int:
    """For how many requests of a list it speaks."""
    return getattr(expect, "count", None) or 1


def _agree(wanted: Any, found: Any) -> bool:
    if isinstance(found, InOrder):
        return found.agrees(wanted)
    if isinstance(wanted, Mapping):
        return all(condition.holds(found.get(name)) for name, condition in wanted.items())
    if isinstance(wanted, tuple):
        return set(wanted) == set(found)
    return bool(wanted == found)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return written({name: getattr(each, "text", each) for name, each in value.items()})
    return written(value)


def _found(wanted: Any, found: Any) -> str:
    """Of many headers only those that were asked for."""
    if isinstance(found, InOrder):
        return found.written(wanted)
    if isinstance(wanted, Mapping):
        return written({name: found.get(name) for name in wanted})
    return written(found) if found != "" else "none"
