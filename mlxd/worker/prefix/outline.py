"""What is known of a prompt's parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outline:
    """In tokens from the prompt's beginning."""

    boundaries: tuple[int, ...] = ()
    """As `Prompt.boundaries`."""
    shared: int = 0
    """As `Prompt.shared`."""
    turns: tuple[int, ...] = ()
    """Where each of the first messages begins, as far as known, in rising order."""


def message_at(turns: Sequence[int], token: int) -> int:
    """The number of the message that a token belongs to, from 0; -1: it stands before them all, or
    none is known.
    """
    return bisect_right(turns, token) - 1
