"""What is kept of answers, for how long, for whom, and what it takes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.control.archive import Archive, Kept
from mlxd.core.clock import ManualClock
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema import Policies

ONE = len(b"{}") + len(b"[]") + 1024


def policies(**responses: Any) -> PolicySet:
    return PolicySet(Policies.model_validate({"limits": {"responses": responses}}))


def kept(
    id: str, before: Kept | None = None, *, owner: str = "me", response: bytes = b"{}"
) -> Kept:
    return Kept(id, owner, response, b"[]", before)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def archive_of(clock: ManualClock, *answers: Kept, **bounds: Any) -> Archive:
    archive = Archive(clock, policies(**bounds))
    for answer in answers:
        archive.keep(answer)
    return archive


def test_only_its_owner_is_told(clock: ManualClock) -> None:
    archive = archive_of(clock, kept("a"))
    assert archive.get("a", "me") is not None
    assert archive.get("a", "you") is None
    assert archive.get("b", "me") is None


def test_the_oldest_are_forgotten_first(clock: ManualClock) -> None:
    archive = archive_of(clock, *map(kept, "abc"), max_count=2)
    assert [archive.get(id, "me") is not None for id in "abc"] == [False, True, True]
    assert archive.bytes == 2 * ONE


def test_bytes_are_bounded(clock: ManualClock) -> None:
    archive = archive_of(clock, *map(kept, "abc"), max_bytes=f"{2 * ONE}B")
    assert [archive.get(id, "me") is not None for id in "abc"] == [False, True, True]


def test_what_alone_is_too_large_is_not_kept(clock: ManualClock) -> None:
    archive = archive_of(clock, kept("a", response=bytes(5000)), max_bytes="4kB")
    assert archive.get("a", "me") is None
    assert (len(archive), archive.bytes) == (0, 0)


def test_whoever_takes_the_most_makes_room(clock: ManualClock) -> None:
    """A conversation frees nothing before its last answer goes; others' stay all the same."""
    archive = archive_of(clock, kept("a", owner="you"), max_bytes="4kB")
    last: Kept | None = None
    for number in range(5):
        last = kept(str(number), last)
        archive.keep(last)
    assert archive.get("a", "you") is not None
    assert archive.bytes <= 4000


def test_its_time_is_over_some_day(clock: ManualClock) -> None:
    archive = archive_of(clock, kept("a"), ttl="60s")
    clock.advance(59.0)
    archive.keep(kept("b"))
    assert archive.get("a", "me") is not None
    clock.advance(1.0)
    assert archive.get("a", "me") is None
    assert archive.get("b", "me") is not None


def test_other_bounds_hold_at_once(clock: ManualClock) -> None:
    archive = archive_of(clock, *map(kept, "abc"))
    archive.apply(policies(max_count=1))
    assert len(archive) == 1
    archive.apply(policies(store="off"))
    assert (len(archive), archive.bytes) == (0, 0)
    archive.keep(kept("d"))
    assert len(archive) == 0
    archive.apply(policies())
    archive.keep(kept("e"))
    assert len(archive) == 1


def test_a_conversation_counts_once_and_outlives_its_beginning(clock: ManualClock) -> None:
    a = kept("a")
    b, other = kept("b", a), kept("c", a)
    archive = archive_of(clock, a, b, other)
    assert archive.bytes == 3 * ONE
    archive.remove(a)
    assert archive.get("a", "me") is None
    assert archive.bytes == 3 * ONE, "two go on from it"
    assert [one.id for one in b.conversation()] == ["a", "b"]
    archive.remove(b)
    assert archive.bytes == 2 * ONE
    archive.remove(other)
    assert archive.bytes == 0


def test_it_goes_on_from_one_that_was_removed_meanwhile(clock: ManualClock) -> None:
    a = kept("a")
    archive = archive_of(clock, a)
    archive.remove(a)
    archive.keep(kept("b", a))
    assert (len(archive), archive.bytes) == (1, 2 * ONE)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("krt"), st.integers(0, 8), st.integers(0, 400)), max_size=40
    )
)
def test_the_sum_is_of_all_that_can_be_reached(steps: list[tuple[str, int, int]]) -> None:
    clock = ManualClock()
    archive = archive_of(clock, max_count=4, max_bytes="6kB", ttl="30s")
    made: list[Kept] = []
    for what, number, size in steps:
        one = made[number] if number < len(made) else None
        if what == "k":
            made.append(kept(str(len(made)), one, response=bytes(size)))
            archive.keep(made[-1])
        elif what == "r" and one is not None:
            archive.remove(one)
        else:
            clock.advance(float(number))
            archive.sweep()
        listed = [one for one in made if archive.get(one.id, "me") is one]
        reached = {each.id: each.size for one in listed for each in one.conversation()}
        assert archive.bytes == sum(reached.values()) <= 6000
        assert len(archive) == len(listed) <= 4


@pytest.mark.parametrize("owners", [1, 5000])
def test_an_edit_that_leaves_room_for_few_takes_no_longer_for_many(
    clock: ManualClock, owners: int
) -> None:
    answers = [kept(str(n), owner=str(n % owners)) for n in range(5000)]
    archive = archive_of(clock, *answers, max_count=5000)
    began = time.thread_time()
    archive.apply(policies(max_count=5000, max_bytes=f"{3 * ONE}B"))
    assert time.thread_time() - began < 0.3
    assert len(archive) == 3
    assert archive.bytes == 3 * ONE


def test_the_last_of_a_client_goes_behind_those_of_another(clock: ManualClock) -> None:
    early = [kept(f"early-{n}", owner="few") for n in range(5000)]
    late = [kept(f"late-{n}", owner="much", response=bytes(8000)) for n in range(5000)]
    archive = archive_of(clock, *early, *late, max_count=10_000)
    began = time.thread_time()
    archive.apply(policies(max_count=10_000, max_bytes="12MB"))
    assert time.thread_time() - began < 0.3
    assert archive.get("early-0", "few") is not None
    assert archive.get("late-0", "much") is None
