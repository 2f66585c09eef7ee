"""What a run of tests came to: for people line by line, for programs as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlxd.policy.load import PolicyError
from mlxd.policy.strict_yaml import Place

PASSED, FAILED, WRONG = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a test failed: its first step that went otherwise."""

    place: Place
    expected: str
    got: str
    step: str
    """Such as `start at 1s`."""


@dataclass(frozen=True, slots=True)
class Result:
    """One test."""

    name: str
    file: str
    place: Place
    failure: Failure | None = None
    acted: frozenset[str] = frozenset()
    """The rules that refused, or in mode dry_run would have refused, at least once."""

    def __str__(self) -> str:
        failure = self.failure
        if failure is None:
            return f"passed  {self.name}"
        where = f"{self.file}:{failure.place.line}:{failure.place.column}"
        return (
            f"FAILED  {self.name}\n"
            f"        {where}: {failure.step}: expected {failure.expected}, got {failure.got}"
        )

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "file": self.file,
            "line": self.place.line,
            "passed": self.failure is None,
        }
        if self.failure is not None:
            found["failure"] = {
                "line": self.failure.place.line,
                "column": self.failure.place.column,
                "step": self.failure.step,
                "expected": self.failure.expected,
                "got": self.failure.got,
            }
        return found


@dataclass(frozen=True, slots=True)
class Report:
    """All tests of a run. With `errors` none was run."""

    results: tuple[Result, ...] = ()
    rules: tuple[str, ...] = ()
    """The rules that the folder has in force."""
    errors: tuple[PolicyError, ...] = ()

    @property
    def failed(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.failure is not None)

    @property
    def covered(self) -> list[str]:
        """Rules in force that decided against a request at least once."""
        acted = frozenset[str]().union(*(result.acted for result in self.results))
        return [rule for rule in self.rules if rule in acted]

    @property
    def uncovered(self) -> list[str]:
        return [rule for rule in self.rules if rule not in self.covered]

    @property
    def exit_status(self) -> int:
        """0 all passed; 1 some failed; 2 the tests, or the policies, cannot be read."""
        if self.errors:
            return WRONG
        return FAILED if self.failed else PASSED

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.errors:
            yield from map(str, self.errors)
            return
        file = ""
        for result in self.results:
            if result.file != file:
                file = result.file
                yield file
            yield f"  {result}".replace("\n", "\n  ")
        passed = len(self.results) - len(self.failed)
        yield f"{passed} passed, {len(self.failed)} failed"
        yield f"rules that a test has seen refuse: {', '.join(self.covered) or 'none'}"
        if self.uncovered:
            yield f"rules that no test has seen refuse: {', '.join(self.uncovered)}"

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.exit_status == PASSED,
            "tests": [result.as_json() for result in self.results],
            "rules": {"covered": self.covered, "not_covered": self.uncovered},
            "errors": [str(error) for error in self.errors],
        }
