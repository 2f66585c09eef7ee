"""What an engine holds at most with certain sequences in it, by what they have reserved."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mlxd.core.footprint import PREFILL_APART, Footprint
from mlxd.worker.claim import Claim, Reservation, Stage

Joining = tuple[int, int]
"""Of one whose prompt is not read yet: tokens reserved, and those of them that are prompt."""


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest batch of a busy time, as it really was; all 0 when nothing can be said."""

    predicted_bytes: int = 0
    rows: int = 0
    longest: int = 0


class Prediction:
    """Of one model's engine. Bytes throughout, with the weights."""

    def __init__(self, footprint: Footprint, rows: int) -> None:
        """`rows`: the most sequences that hold a cache at one time."""
        self._footprint = footprint
        self._rows = rows

    def reserved(self, reservations: Collection[Reservation], more: Sequence[Claim] = ()) -> int:
        """With `reservations` in it, and `more`, each at the length that is reserved for it."""
        decoding = _reserved_by_decoding(reservations)
        new = [one for one in reservations if one.stage is not Stage.DECODING]
        joining = [(one.reserved, one.claim.prompt) for one in new if one.claim.enters]
        joining += [(claim.reserved, claim.prompt) for claim in more if claim.enters]
        return max(self._peak(decoding, joining), self._apart(reservations, more))

    def alone(self, claim: Claim) -> int:
        """With nobody else in it."""
        return self._peak([], [(claim.reserved, claim.prompt)])

    def as_it_is(self, reservations: Collection[Reservation], room: int) -> Largest:
        """At the lengths that sequences have by now. `room`: for rows that decode."""
        decoding = [one.used for one in reservations if one.stage is Stage.DECODING]
        joining = [one.claim.prompt for one in reservations if one.stage is Stage.JOINING]
        if not decoding and not joining:
            return Largest()
        predicted = self._footprint.peak_bytes(decoding, joining, room=room)
        return Largest(predicted, len(decoding) + len(joining), max([*decoding, *joining]))

    def room_of_rows(self, reservations: Collection[Reservation], allowed: int) -> int:
        """What is left of `allowed` for rows that decode, with all that may be held beside them at
        its most.
        """
        new = [one for one in reservations if one.stage is not Stage.DECODING and one.claim.enters]
        apart = [one.claim.prompt for one in reservations if one.claim.apart]
        beside = max(0, self._reading([(one.reserved, one.claim.prompt) for one in new]))
        if apart:
            beside += self._footprint.alone_bytes([max(apart)], PREFILL_APART)
        return max(0, allowed - self._footprint.weights_bytes - beside)

    def _apart(self, reservations: Collection[Reservation], more: Sequence[Claim]) -> int:
        """While one prompt is read apart; 0 when none is. Others hold what they may hold meanwhile,
        and step between its chunks.
        """
        apart = [
            claim.prompt for claim in (*(one.claim for one in reservations), *more) if claim.apart
        ]
        if not apart:
            return 0
        prompt = max(apart)
        decoding = _reserved_by_decoding(reservations)
        others = [
            one for one in reservations if one.stage is not Stage.DECODING and not one.claim.apart
        ]
        joining = [(one.reserved, one.claim.prompt) for one in others]
        joining += [(claim.reserved, claim.prompt) for claim in more if not claim.apart]
        rows = self._longest([*decoding, *(length for length, _ in joining)])
        footprint = self._footprint
        read = footprint.peak_bytes([], [prompt], PREFILL_APART)
        stepping = self._peak(decoding, joining) + footprint.cache_bytes([prompt])
        return max(stepping, footprint.held_bytes(rows) + read)

    def _peak(self, decoding: list[int], joining: list[Joining]) -> int:
        """The most over what may come: rows join and leave in any order, and prompts are read
        beside as many of the others as can be, or in larger chunks when these are gone.
        """
        footprint = self._footprint
        rows = self._longest([*decoding, *(length for length, _ in joining)])
        decoded = footprint.weights_bytes + footprint.grouped_bytes(rows)
        if not joining:
            return decoded
        alone = footprint.alone_bytes(self._longest(prompt for _, prompt in joining))
        beside = footprint.held_bytes(rows) + self._reading(joining)
        return max(decoded, footprint.weights_bytes + max(alone, beside))

    def _reading(self, joining: list[Joining]) -> int:
        """What is held while prompts are read, beyond what all hold between two steps."""
        lengths, prompts = [length for length, _ in joining], [prompt for _, prompt in joining]
        return self._footprint.reading_bytes(lengths, prompts)

    def _longest(self, lengths: Iterable[int]) -> list[int]:
        """Of as many as hold a cache at one time."""
        return sorted(lengths, reverse=True)[: self._rows]


def _reserved_by_decoding(reservations: Iterable[Reservation]) -> list[int]:
    return [one.reserved for one in reservations if one.stage is Stage.DECODING]
