"""Looks for cases that are answered wrongly. What finds a new way through the code is kept, and
changed further.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tests.fuzz.mutation import LONGEST, Mutator
from tests.fuzz.target import Target, flaw_of

_LEAST_PIECE = 1


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that is answered wrongly, as short as it could be made."""

    case: bytes
    flaw: str

    @property
    def name(self) -> str:
        """Of its file."""
        return hashlib.sha256(self.case).hexdigest()[:12]


class Ways:
    """Which steps from line to line have been seen."""

    def __init__(self, traced: tuple[str, ...]) -> None:
        self._traced = traced
        self._seen: set[tuple[int, int, int]] = set()
        self._ours: dict[Any, bool] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._seen)

    def flaw_of(self, target: Target, case: bytes) -> str:
        """As `flaw_of` says it; meanwhile every step is noted."""
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            return flaw_of(target, case)
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = any(part in code.co_filename for part in self._traced)
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self._seen.add((id(frame.f_code), self._last, frame.f_lineno))
            self._last = frame.f_lineno
        return self._line


@dataclass(slots=True)
class Hunt:
    """One target's, from one seed: the same cases each time."""

    target: Target
    seed: int = 1
    cases: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)
    """By their flaw: one of each kind."""
    pool: list[bytes] = field(default_factory=list)
    ways: Ways = field(init=False)

    def __post_init__(self) -> None:
        self.ways = Ways(self.target.traced)

    def run(self) -> Iterator[None]:
        """Without end; a step is a case."""
        mutator = Mutator(self.seed, self.target.words)
        for case in self.target.seeds:
            self._try(case, keep=True)
            yield
        while True:
            self._try(mutator.changed(self.pool), keep=False)
            yield

    def _try(self, case: bytes, *, keep: bool) -> None:
        self.cases += 1
        known = len(self.ways)
        flaw = self.ways.flaw_of(self.target, case)
        if flaw and "takes more than" in flaw:
            flaw = flaw_of(self.target, case)  # to be looked at takes time, too
        if flaw and _kind(flaw) not in self.findings:
            self.findings[_kind(flaw)] = shortened(self.target, Finding(case, flaw))
        elif keep or (len(self.ways) > known and len(case) < LONGEST and not flaw):
            self.pool.append(case)


def shortened(target: Target, finding: Finding) -> Finding:
    """The same flaw, by a case from which nothing more can be left out."""
    if "takes more than" in finding.flaw:
        return finding
    case, piece, tries = finding.case, max(_LEAST_PIECE, len(finding.case) // 2), 2000
    while tries > 0:
        begin, smaller = 0, False
        while begin < len(case) and tries > 0:
            without = case[:begin] + case[begin + piece :]
            tries -= 1
            if _kind(flaw_of(target, without)) == _kind(finding.flaw):
                case, smaller = without, True
            else:
                begin += piece
        if piece == _LEAST_PIECE and not smaller:
            break
        piece = max(_LEAST_PIECE, piece // 2)
    return Finding(case, flaw_of(target, case))


def _kind(flaw: str) -> str:
    """What comes before the words."""
    what, _, words = flaw.partition(":")
    return what + words[:12]
