"""One thing that is wrong, or could be better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["problem", "advice"]


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    """Stable and snake_case; docs/reference/doctor.md lists them."""
    level: Level
    words: str
    fix: str
    """What to do, with the command if there is one."""


Findings = Iterator[Finding]


def problem(code: str, words: str, fix: str) -> Finding:
    return Finding(code, "problem", words, fix)


def advice(code: str, words: str, fix: str) -> Finding:
    return Finding(code, "advice", words, fix)
