"""One thing that was to be shown, and what came of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mlxd.core import places
from mlxd.core.lines import one_line

_MOST_LINES = 8
_MOST_CHARACTERS = 160


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_HERE = "not applicable"


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    words: str = ""
    output: str = ""
    """What a command said, where one was asked."""


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    outcome: Outcome


def passed(words: str = "", output: str = "") -> Outcome:
    return Outcome(Verdict.PASSED, words, shortened(output))


def failed(words: str = "", output: str = "") -> Outcome:
    return Outcome(Verdict.FAILED, words, shortened(output))


def not_here(words: str, output: str = "") -> Outcome:
    return Outcome(Verdict.NOT_HERE, words, shortened(output))


def judged(words: str = "", output: str = "", *, true: bool) -> Outcome:
    return (passed if true else failed)(words, output)


def shortened(output: str) -> str:
    """Its last lines, none of them long."""
    said = without_home(output).strip().splitlines()
    lines = [one_line(line)[:_MOST_CHARACTERS] for line in said]
    left_out = len(lines) - _MOST_LINES
    return "\n".join([f"({left_out} more)", *lines[-_MOST_LINES:]] if left_out > 0 else lines)


def without_home(text: str) -> str:
    """`~` for the user's own folder, which has a name in it."""
    home = str(places.home_of(os.environ) or "/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home != "/" else text


class Steps:
    """Those that were taken; each is shown as it ends."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self.taken: list[Step] = []

    def begin(self, name: str) -> None:
        self._show(f"{name} ...")

    def end(self, name: str, outcome: Outcome) -> None:
        self.taken.append(Step(name, outcome))
        words = f"{outcome.verdict}: {outcome.words}" if outcome.words else str(outcome.verdict)
        self._show(one_line(f"    {words}"))

    @property
    def failures(self) -> int:
        return sum(step.outcome.verdict is Verdict.FAILED for step in self.taken)

    @property
    def proved(self) -> bool:
        return bool(self.taken) and not self.failures
