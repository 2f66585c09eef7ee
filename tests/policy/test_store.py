"""The policies in force, and how others take their place: all that follows or none."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.store import Live, PolicyStore


def two_slots(generation: int = 2) -> PolicySet:
    found = load(None, [Override("limits.concurrency.max_in_flight", "2", "a test")])
    return replace(found, generation=generation)


class Recorder:
    """Something that was prepared."""

    def __init__(self, name: str, said: list[str], *, broken: bool = False) -> None:
        self.name = name
        self._said = said
        self._broken = broken

    def commit(self) -> None:
        if self._broken:
            raise RuntimeError(self.name)
        self._said.append(f"{self.name} commits")

    def undo(self) -> None:
        self._said.append(f"{self.name} undoes")


def test_the_first_set_is_in_force_at_once() -> None:
    first = load()
    assert PolicyStore(first).current is first


def test_a_new_set_is_in_force_with_its_generation() -> None:
    store = PolicyStore(load())
    store.commit(two_slots(7), [])
    assert store.current.generation == 7
    assert store.current.limits.concurrency.max_in_flight == 2


def test_who_kept_the_old_set_keeps_it_whole() -> None:
    store = PolicyStore(load())
    kept = store.current
    store.commit(two_slots(), [])
    assert (kept.generation, kept.limits.concurrency.max_in_flight) == (1, 5)


def test_what_was_prepared_is_committed_in_order() -> None:
    said: list[str] = []
    PolicyStore(load()).commit(two_slots(), [Recorder("a", said), Recorder("b", said)])
    assert said == ["a commits", "b commits"]


def test_a_commit_that_fails_leaves_the_old_set_and_goes_no_further() -> None:
    said: list[str] = []
    store = PolicyStore(load())
    before = store.current
    prepared = [Recorder("a", said), Recorder("b", said, broken=True), Recorder("c", said)]
    with pytest.raises(RuntimeError, match="b"):
        store.commit(two_slots(), prepared)
    assert store.current is before
    assert said == ["a commits"]


async def test_a_live_applier_is_told_of_the_new_set_and_when_undone_of_the_old_one() -> None:
    told: list[PolicySet] = []
    old, new = load(), two_slots()
    prepared = await Live(told.append).prepare(old, new)
    prepared.undo()
    assert told == []
    prepared.commit()
    prepared.undo()
    assert told == [new, old]


def test_a_generation_is_alive_as_long_as_somebody_works_by_it() -> None:
    store = PolicyStore(load())
    kept = store.current
    store.commit(two_slots(), [])
    assert store.generations_alive == 2
    assert kept.generation == 1
    del kept
    gc.collect()
    assert store.generations_alive == 1


def test_a_refreshed_set_is_the_same_generation_at_other_places() -> None:
    store = PolicyStore(load())
    store.commit(two_slots(5), [])
    same = two_slots(5)
    store.refresh(same)
    assert store.current is same
