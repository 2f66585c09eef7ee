"""Which prompts are read next, and how much of them: a pure decision.

A prompt is *short* when it is one chunk, and *long* else, until its end. Short ones share a chunk,
as whole rows: it is better that few are through than that many are half-way. Long ones are read
alone, one after the other in order of arrival. Short ones come first, the shortest before the
others; but every other chunk is that of a long one, or, without any, of whoever waits longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxd.core.footprint import PREFILL_ROWS, STEP_TOKENS, is_little_padding

Size = Callable[[int, int], int]
"""Of (rows, what the longest of them has behind it): tokens of each that a chunk may have."""


@dataclass(slots=True, eq=False)
class Unread:
    """A sequence whose prompt is not read."""

    uid: int
    read: int
    """Tokens that it has behind it, read or found."""
    left: int
    """And before it, but for the last one: with that it decodes."""
    stop: int
    """How many of these may be read at once: there its caches are kept."""
    begun: bool = False
    """It holds caches."""

    @property
    def end(self) -> int:
        return self.read + self.left


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step reads."""

    rows: tuple[Unread, ...]
    width: int
    """Tokens of the longest row. Several rows are read to their ends."""
    short: bool


def next_chunk(
    waiting: Sequence[Unread],
    size: Size,
    room: int,
    *,
    patient_are_due: bool,
    midway: Size | None = None,
    padded: bool = True,
) -> Chunk | None:
    """`waiting`: in order of arrival, without those that wait for another. `room`: how many may
    begin. `patient_are_due`: the last chunk went to whoever was shortest. `midway`: as `size`, of
    chunks of long ones. `padded`: those with less left to read may go with those with more.
    """
    able = [unread for unread in waiting if unread.begun or room > 0]
    short = [unread for unread in able if _is_short(unread, size)]
    long = [unread for unread in able if not _is_short(unread, size)]
    if long and (patient_are_due or not short):
        first = min(long, key=lambda unread: not unread.begun)
        return Chunk((first,), min(first.stop, (midway or size)(1, first.read)), short=False)
    if not short:
        return None
    first = short[0] if patient_are_due else min(short, key=lambda unread: unread.left)
    if not padded:
        short = [unread for unread in short if unread.left == first.left]
    return _shared(first, short, size, room)


def _is_short(unread: Unread, size: Size) -> bool:
    if unread.begun:
        return unread.left == 0
    return unread.stop >= unread.left and unread.left <= size(1, unread.read)


def _shared(first: Unread, short: Sequence[Unread], size: Size, room: int) -> Chunk:
    """`first`, and as many of the others as go with it."""
    rows = [first]
    for unread in short:
        together = [*rows, unread]
        if len(together) > min(PREFILL_ROWS, max(room, 1)):
            break
        if unread is not first and _go_together(together, size):
            rows = together
    return Chunk(tuple(rows), max(row.left for row in rows), short=True)


def _go_together(rows: Sequence[Unread], size: Size) -> bool:
    """Whether they fit into one chunk, and their padding, in it and in the caches, is not worth
    another one.

    Nor may it make their caches longer than the longest of them needs: memory is counted for that.
    """
    width, read = max(row.left for row in rows), max(row.read for row in rows)
    longest = max(row.end for row in rows)
    return (
        width <= size(len(rows), read)
        and read + width <= -(-longest // STEP_TOKENS) * STEP_TOKENS
        and is_little_padding(len(rows) * width, sum(row.left for row in rows))
        and is_little_padding(len(rows) * (read + width), sum(row.end for row in rows))
    )
