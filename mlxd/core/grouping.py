"""Which sequences decode together: a long one pads all others of its batch, a second batch reads
the weights once more.

Pure. A sequence is known by its value here: the bytes that it takes by itself, or that a step reads
of it. Caches grow by many tokens at once: what is read of two may be alike, and what they take not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

MOST_GROUPS = 4
"""More are never worth their forward passes."""
UNBOUNDED = 1 << 62
"""Room for any padding."""
_WORTH = 8
"""Sequences stay where they are unless moving them saves more than this part of a step."""
Place: TypeAlias = "tuple[int, int]"
"""A group, and a row of it."""


@dataclass(frozen=True, slots=True)
class Division:
    """Sequences by falling value, so many in the first group, so many in the next."""

    sizes: tuple[int, ...]
    nbytes: int
    """What all take together, padded to the largest of their group."""

    def cost(self, pass_bytes: int) -> int:
        """Bytes that a step reads."""
        return self.nbytes + len(self.sizes) * pass_bytes


def divisions(values: Sequence[int]) -> list[Division]:
    """For each number of groups the division that pads least; `values` fall.

    Equal ones are never told apart, so that there may be fewer groups than allowed.
    """
    starts = [n for n, value in enumerate(values) if n == 0 or value < values[n - 1]]
    ends = [*starts[1:], len(values)]
    best = [Division((end,), values[0] * end) for end in ends]
    found = best[-1:]
    for groups in range(2, min(MOST_GROUPS, len(starts)) + 1):
        best = [
            _extended(best, values, starts[groups - 1 : last + 1], ends[last])
            for last in range(groups - 1, len(starts))
        ]
        found.append(best[-1])
    return found


def _extended(
    shorter: Sequence[Division], values: Sequence[int], starts: Sequence[int], end: int
) -> Division:
    """The best with a last group up to `end`, that begins at one of `starts`; each of these has
    the best division of all before it among `shorter`.
    """
    nbytes, n = min(
        (shorter[n].nbytes + (end - start) * values[start], n) for n, start in enumerate(starts)
    )
    return Division((*shorter[n].sizes, end - starts[n]), nbytes)


def divided(values: Sequence[int], pass_bytes: int, room: int) -> Division:
    """The one whose steps read least, of those that take no more than `room`; `values` fall.

    Where none does, the one that takes least.
    """
    whole = _whole(values)
    if whole.nbytes - sum(values) <= pass_bytes and whole.nbytes <= room:
        return whole
    found = divisions(values)
    fitting = [division for division in found if division.nbytes <= room] or found[-1:]
    return min(fitting, key=lambda division: division.cost(pass_bytes))


def least_bytes(values: Sequence[int], padding: int) -> int:
    """What sequences take that are kept apart for want of room, but for so much padding; `values`
    fall.
    """
    if not values:
        return 0
    whole = _whole(values).nbytes
    if whole - sum(values) <= padding:
        return whole
    return min(whole, divisions(values)[-1].nbytes + padding)


def regrouped(
    groups: Sequence[Sequence[int]],
    pass_bytes: int,
    room: int,
    *,
    held: Sequence[Sequence[int]] | None = None,
    settled: bool = True,
) -> list[list[Place]] | None:
    """Other groups, where these pad too much, or are too many; None: they stay as they are.

    `groups`: the values of each, as bytes that a step reads; `held`: as bytes that it takes, if
    these are others. They rise together. Where something moves anyway (not `settled`), all move for
    the least gain.
    """
    rows = sorted(
        (
            (read, holds, (g, r))
            for g, (reads, all_hold) in enumerate(zip(groups, held or groups, strict=True))
            for r, (read, holds) in enumerate(zip(reads, all_hold, strict=True))
        ),
        reverse=True,
    )
    if not rows:
        return None
    taken = [holds for _, holds, _ in rows]
    values, present = [read for read, _, _ in rows], groups
    best = divided(values, pass_bytes, UNBOUNDED)
    if _padded(best.sizes, taken) > room:
        values, present = taken, held or groups
        best = divided(values, pass_bytes, room)
    now = Division(tuple(map(len, present)), sum(len(group) * max(group) for group in present))
    takes = sum(len(group) * max(group) for group in held or groups)
    fits = takes <= max(room, _padded(best.sizes, taken)) and len(groups) <= MOST_GROUPS
    least = best.cost(pass_bytes)
    if fits and now.cost(pass_bytes) <= least + (least // _WORTH if settled else 0):
        return None
    places = iter([place for _, _, place in rows])
    return [[next(places) for _ in range(size)] for size in best.sizes]


def _padded(sizes: Sequence[int], values: Sequence[int]) -> int:
    """What groups of so many take, each padded to its first; `values` fall."""
    starts = accumulate(sizes, initial=0)
    return sum(size * values[start] for size, start in zip(sizes, starts, strict=False))


def _whole(values: Sequence[int]) -> Division:
    return Division((len(values),), len(values) * values[0])
