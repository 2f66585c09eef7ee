"""Bounds of others' code."""

from __future__ import annotations

import itertools
import signal

import pytest

from mlxd.worker.bounded import TookTooLong, at_most


def test_what_computes_for_too_long_is_ended() -> None:
    with pytest.raises(TookTooLong), at_most(0.05):
        _compute()


def test_what_ends_in_time_leaves_nothing_behind() -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    with at_most(60):
        pass
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == before


def test_a_bound_around_another_holds_behind_it() -> None:
    with pytest.raises(TookTooLong), at_most(0.2):
        _compute_behind_another()


def _compute_behind_another() -> None:
    with at_most(60):
        pass
    _compute()


def _compute() -> None:
    """Until it is ended; if nobody does, it fails after some seconds."""
    for _ in itertools.repeat(None, 500_000_000):
        pass
