"""When an engine's process gives back what its C heap has free."""

from __future__ import annotations

import pytest

from mlxd.core.clock import ManualClock
from mlxd.core.heap import Heap
from mlxd.worker.allocator import TRIM_SECONDS, Allocator

pytestmark = pytest.mark.mlx


class Library:
    def __init__(self) -> None:
        self.trims = 0

    def malloc_trim(self, kept: int) -> int:
        self.trims += 1
        return kept


def test_the_heap_is_trimmed_between_busy_times_and_not_at_each() -> None:
    library, clock = Library(), ManualClock()
    allocator = Allocator(Heap(library), clock.monotonic)
    for seconds, trims in ((0, 0), (TRIM_SECONDS / 2, 0), (TRIM_SECONDS / 2, 1), (1, 1)):
        clock.advance(seconds)
        allocator.trim()
        assert library.trims == trims
    clock.advance(TRIM_SECONDS)
    allocator.trim()
    assert library.trims == 2


def test_it_is_tidied_as_often_and_no_more() -> None:
    library, clock = Library(), ManualClock()
    allocator = Allocator(Heap(library), clock.monotonic)
    for _ in range(12):
        clock.advance(TRIM_SECONDS / 4)
        allocator.tidy()
    assert library.trims == 3


def test_where_there_is_no_such_heap_nothing_is_asked() -> None:
    clock = ManualClock()
    allocator = Allocator(None, clock.monotonic)
    clock.advance(2 * TRIM_SECONDS)
    allocator.trim()
