"""How fast a model's answers go on, by how many are under way at one time.

A step of a batch takes `base + slope * width` seconds. Both are fitted to the log, by least squares
over its answers: each one's seconds per token, against the mean number of answers that were under
way beside it. Where the log shows no slope, or too little to fit one, an answer takes as long as it
took, whatever is beside it.

An answer's work is counted in steps of its own model: what the model could do between its first
token and its last. So an answer that meets the same company takes exactly as long as it did.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from mlxd.telemetry.traffic import Request

_FEWEST = 20
"""Answers that a fit needs."""
_SPREAD = 1.0
"""Between the smallest and the largest width that were seen: what is less shows no slope."""
_SHORTEST = 8
"""Tokens of an answer that says how long a token takes."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a model takes."""

    base: float = 1.0
    slope: float = 0.0

    def seconds(self, width: float) -> float:
        return self.base + self.slope * max(1.0, width)


CONSTANT = Step()
"""Nobody waits for company: work is counted in seconds."""


@dataclass(frozen=True, slots=True)
class Span:
    """One answer, from its first token to its end, as it was."""

    start: float
    end: float
    width: int
    tokens: int
    """Of each of its choices."""


def spans_of(requests: Iterable[Request]) -> Iterator[tuple[int, str, Span]]:
    """With their places in the log, and their models."""
    for index, one in enumerate(requests):
        if one.waited is None or one.ttft is None:
            continue
        start = one.at + one.ttft
        end = one.asked + one.waited + one.held
        if end > start:
            tokens = one.completion // max(1, one.choices)
            yield index, one.model, Span(start, end, one.choices, tokens)


@dataclass(slots=True)
class Paces:
    """What the log shows."""

    steps: dict[str, Step] = field(default_factory=dict)
    work: dict[int, float] = field(default_factory=dict)
    """Of each answer, by its place in the log."""

    def step(self, model: str) -> Step:
        return self.steps.get(model, CONSTANT)


def paces_of(requests: Iterable[Request]) -> Paces:
    """One fit for each model, and the work of each answer under it."""
    by_model: dict[str, dict[int, Span]] = defaultdict(dict)
    for index, model, span in spans_of(requests):
        by_model[model][index] = span
    found = Paces()
    for model, spans in by_model.items():
        step = _fitted(spans)
        found.steps[model] = step
        found.work.update(_steps_of(spans, step))
    return found


def _fitted(spans: Mapping[int, Span]) -> Step:
    widths = _widths(spans)
    points = [
        (widths[index], (span.end - span.start) / span.tokens)
        for index, span in spans.items()
        if span.tokens >= _SHORTEST
    ]
    if len(points) < _FEWEST or max(points)[0] - min(points)[0] < _SPREAD:
        return CONSTANT
    return _line(points) or CONSTANT


def _line(points: list[tuple[float, float]]) -> Step | None:
    """None: more company does not make an answer slower, as far as can be seen."""
    middle = sum(x for x, _ in points) / len(points)
    level = sum(y for _, y in points) / len(points)
    across = sum((x - middle) ** 2 for x, _ in points)
    slope = sum((x - middle) * (y - level) for x, y in points) / across
    base = level - slope * middle
    if slope <= 0.0:
        return None
    return Step(base, slope) if base > 0.0 else Step(0.0, level / middle)


def _widths(spans: Mapping[int, Span]) -> dict[int, float]:
    """The mean number of answers under way while each was."""
    total = _integral(spans, float)
    return {index: total[index] / (span.end - span.start) for index, span in spans.items()}


def _steps_of(spans: Mapping[int, Span], step: Step) -> dict[int, float]:
    return _integral(spans, lambda width: 1.0 / step.seconds(width))


def _integral(spans: Mapping[int, Span], rate: Callable[[int], float]) -> dict[int, float]:
    """Of each, what `rate` of the width adds up to over its time."""
    edges = sorted(
        [(span.start, span.width, index) for index, span in spans.items()]
        + [(span.end, -span.width, index) for index, span in spans.items()]
    )
    so_far, now, width = 0.0, edges[0][0], 0
    begun: dict[int, float] = {}
    found: dict[int, float] = {}
    for at, change, index in edges:
        so_far += (at - now) * rate(width)
        now = at
        width += change
        if change > 0:
            begun[index] = so_far
        else:
            found[index] = so_far - begun[index]
    return found


class Batch:
    """The answers of one model that are under way at one time."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._done = 0.0
        """Steps so far."""
        self._now = 0.0
        self._width = 0
        self._ends: list[tuple[float, int, Hashable]] = []
        self._widths: dict[Hashable, tuple[int, float]] = {}
        """Of each its width, and the step that it ends with."""
        self._numbers = count()
        self.version = 0
        """Another one: what `next` said may be otherwise now."""

    def enter(self, one: Hashable, work: float, width: int, now: float) -> None:
        """It has its first token, and so much work before it."""
        self._advance(now)
        self._widths[one] = (width, self._done + work)
        self._width += width
        heapq.heappush(self._ends, (self._done + work, next(self._numbers), one))
        self.version += 1

    def leave(self, one: Hashable, now: float) -> None:
        """It is given up, or over; nothing if it is not there."""
        if one in self._widths:
            self._advance(now)
            self._width -= self._widths.pop(one)[0]
            self.version += 1

    def left(self, one: Hashable, now: float) -> float:
        """Steps of its work that are still before it; 0: it is not there."""
        self._advance(now)
        return max(0.0, self._widths[one][1] - self._done) if one in self._widths else 0.0

    def next(self) -> float | None:
        """When the next of them is over, as long as no other comes or goes."""
        while self._ends and self._ends[0][2] not in self._widths:
            heapq.heappop(self._ends)
        if not self._ends:
            return None
        left = max(0.0, self._ends[0][0] - self._done)
        return self._now + left * self._step.seconds(self._width)

    def first(self) -> Hashable:
        """Whose end `next` is."""
        return self._ends[0][2]

    def _advance(self, now: float) -> None:
        if self._width:
            self._done += (now - self._now) / self._step.seconds(self._width)
        self._now = now
