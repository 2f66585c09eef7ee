"""What a worker says of earlier prompts that it keeps, and what it does when it may keep less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mlxd.ipc.messages import (
    Budget,
    CacheAsk,
    CacheClear,
    CacheStats,
    Observed,
    Output,
    PrefixRules,
    Trim,
)
from mlxd.worker.prefix.report import Cache
from tests.worker.test_loop import Heap, Script, job, run

pytestmark = pytest.mark.mlx


@dataclass
class Entry:
    length: int
    used: float
    nbytes: int


class Store:
    """Keeps what fits, the last used first."""

    def __init__(self, *entries: Entry) -> None:
        self.kept = list(entries)
        self.limits: list[int] = []

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.kept)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.kept)

    def clear(self) -> None:
        self.kept.clear()

    def shrink(self, nbytes: int) -> None:
        self.limits.append(nbytes)
        while self.nbytes > nbytes:
            self.kept.remove(min(self.kept, key=lambda entry: entry.used))


@dataclass
class Disk:
    entries: int = 3
    nbytes: int = 300
    off: bool = False
    held: int = 0

    @property
    def stats(self) -> Disk:
        return self

    def clear(self) -> None:
        self.entries = self.nbytes = 0


def store() -> Store:
    return Store(Entry(10, 95.0, 40), Entry(20, 60.0, 60))


def cache(of: Store, disk: Disk | None = None) -> Cache:
    return Cache(of, disk, lambda: 100.0)


def test_numbers_and_nothing_else() -> None:
    assert cache(store(), Disk()).stats(7) == CacheStats(7, 2, 100, 30, 40.0, 3, 300)
    assert cache(Store()).stats(8) == CacheStats(8)
    assert Cache().stats(9) == CacheStats(9)


def test_less_is_kept_at_once_and_it_says_whether_that_gave_anything_back() -> None:
    kept = cache(of := store())
    assert kept.shrink(200) is False
    assert kept.shrink(50) is True
    assert (kept.nbytes, of.limits) == (40, [200, 50])


def test_an_eighth_is_for_what_waits_to_be_written() -> None:
    kept = cache(of := store(), disk := Disk(held=7))
    assert kept.nbytes == 107
    kept.shrink(80)
    disk.off = True
    kept.shrink(80)
    assert of.limits == [70, 80]


class Switch:
    """A backing that turns its disk on and off."""

    keeps = is_awaited = False

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def apply(self, rules: PrefixRules) -> None:
        self._disk.off = rules.disk_bytes == 0

    def tend(self, *, idle: bool) -> bool:
        return False

    def close(self, seconds: float) -> None:
        pass


def test_it_is_so_as_soon_as_there_is_a_disk_and_no_longer_than_there_is_one() -> None:
    kept = cache(of := store(), disk := Disk(off=True))
    wire = run(
        Script(), [Budget(0, 0, 0, prefix_bytes=100)], [PrefixRules()], [PrefixRules(0)],
        cache=kept, backing=Switch(disk), paced=True,
    )  # fmt: skip
    assert of.limits == [100, 88, 100]
    assert len([m for m in wire.of(Output) if m.memory is not None]) == 1


def test_what_is_forgotten_is_forgotten_on_disk_when_that_is_asked_for() -> None:
    kept = cache(store(), disk := Disk())
    kept.clear(disk=False)
    assert (kept.nbytes, disk.nbytes) == (0, 300)
    kept.clear(disk=True)
    assert disk.nbytes == 0


def test_a_worker_answers_between_two_steps_in_the_order_of_the_questions() -> None:
    kept = cache(store())
    wire = run(
        Script(), [CacheAsk(1), Budget(0, 0, 0, prefix_bytes=50), CacheAsk(2)],
        [CacheClear(3)], cache=kept,
    )  # fmt: skip
    assert [(m.id, m.entries, m.bytes) for m in wire.of(CacheStats)] == [
        (1, 2, 100), (2, 1, 40), (3, 0, 0),
    ]  # fmt: skip


def test_what_is_given_back_is_told_at_once() -> None:
    """Somebody waits for it."""
    told = run(Script(), [Budget(0, 0, 0, prefix_bytes=50)], cache=cache(store()))
    assert len([m for m in told.of(Output) if m.memory is not None]) == 1
    same = run(Script(), [Budget(0, 0, 0, prefix_bytes=100)], cache=cache(store()))
    assert [m for m in same.of(Output) if m.memory is not None] == []


def test_what_is_kept_is_none_of_what_a_busy_time_took() -> None:
    """Else every prediction would be raised by it."""
    for kept, took in ((None, 1000), (cache(store()), 900)):
        wire = run(Script(), [job(1)], heap=Heap(1000), cache=kept)
        (observed,) = wire.of(Observed)
        assert observed.measured_bytes == took


def test_a_trim_frees_buffers_and_forgets_nothing() -> None:
    kept = cache(store())
    run(Script(), [Trim()], cache=kept)
    assert kept.nbytes == 100
