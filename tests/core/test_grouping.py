"""Which sequences decode together."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.core.grouping import (
    MOST_GROUPS,
    UNBOUNDED,
    Division,
    divided,
    divisions,
    least_bytes,
    regrouped,
)
from tests.support.examples import examples

falling = st.lists(st.integers(1, 40), min_size=1, max_size=8).map(
    lambda values: sorted(values, reverse=True)
)
costs = st.integers(0, 60)
rooms = st.integers(1, 400)


def padded(values: list[int], cuts: tuple[int, ...]) -> int:
    """In groups that begin at these places."""
    return sum((end - begin) * values[begin] for begin, end in pairwise([0, *cuts, len(values)]))


def all_divisions(values: list[int]) -> list[tuple[int, int]]:
    """(groups, bytes) of every way to cut them, into no more groups than there may be."""
    return [
        (groups, padded(values, cuts))
        for groups in range(1, min(MOST_GROUPS, len(values)) + 1)
        for cuts in combinations(range(1, len(values)), groups - 1)
    ]


@given(falling)
@settings(max_examples=examples(60, 150), deadline=None)
def test_of_each_number_of_groups_the_one_that_pads_least_is_found(values: list[int]) -> None:
    found = divisions(values)
    for groups, division in enumerate(found, start=1):
        assert len(division.sizes) == groups
        assert sum(division.sizes) == len(values)
        assert division.nbytes == min(n for g, n in all_divisions(values) if g == groups)
    assert found[-1].nbytes == min(n for _, n in all_divisions(values))


@given(falling, costs, rooms)
@settings(max_examples=examples(60, 150), deadline=None)
def test_what_is_chosen_reads_least_of_all_that_there_is_room_for(
    values: list[int], cost: int, room: int
) -> None:
    chosen = divided(values, cost, room)
    fitting = [(g, n) for g, n in all_divisions(values) if n <= room]
    if fitting:
        assert chosen.cost(cost) == min(n + g * cost for g, n in fitting)
        assert chosen.nbytes <= room
    else:
        assert chosen.nbytes == min(n for _, n in all_divisions(values))


members = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=8)
"""What is reserved, and by how much less is used; nothing: it has left."""


@given(members, costs, costs)
@settings(max_examples=examples(60, 150), deadline=None)
def test_what_is_reserved_is_never_exceeded(
    members: list[tuple[int, int]], padding: int, cost: int
) -> None:
    """By shorter ones, and fewer, in the room that was left when the longest was predicted."""
    predicted = least_bytes(sorted((most for most, _ in members), reverse=True), padding)
    actual = sorted((most - less for most, less in members if less < most), reverse=True)
    if actual:
        assert divided(actual, cost, predicted).nbytes <= predicted
    assert least_bytes(actual, padding) <= predicted


def test_a_long_one_is_apart_where_its_padding_costs_more_than_a_pass() -> None:
    values = [80, *[1] * 7]
    assert divided(values, 7 * 79 - 1, UNBOUNDED) == Division((1, 7), 87)
    assert divided(values, 7 * 79, UNBOUNDED) == Division((8,), 640)


def test_want_of_room_tells_them_apart_sooner() -> None:
    values = [80, *[1] * 7]
    assert divided(values, 10_000, 640) == Division((8,), 640)
    assert divided(values, 10_000, 639) == Division((1, 7), 87)
    assert divided(values, 10_000, 3) == Division((1, 7), 87), "there is nothing less"


def test_equal_ones_are_never_told_apart() -> None:
    assert divisions([5, 5, 5]) == [Division((3,), 15)]


def test_groups_stay_while_others_save_little() -> None:
    now = [[80], [10, 1]]
    assert regrouped(now, 8, UNBOUNDED) is None, "three would save 1 of 116"
    assert regrouped(now, 2, UNBOUNDED) is None, "7 of 97"
    assert regrouped([[40], [10, 1]], 0, UNBOUNDED) == [[(0, 0)], [(1, 0)], [(1, 1)]]


def test_where_something_moves_anyway_all_move_for_the_least_gain() -> None:
    now = [[80], [10, 1]]
    assert regrouped(now, 8, UNBOUNDED, settled=False) == [[(0, 0)], [(1, 0)], [(1, 1)]]
    assert regrouped(now, 9, UNBOUNDED, settled=False) is None


def test_groups_that_are_much_alike_become_one() -> None:
    assert regrouped([[10], [9, 9]], 100, UNBOUNDED) == [[(0, 0), (1, 1), (1, 0)]]


def test_what_is_read_decides_as_long_as_all_that_is_taken_has_room():
    reads, takes = [[260, 259, 250]], [[512, 512, 256]]
    assert regrouped(reads, 100, 1536, held=takes) is None, "the third pads little"
    assert regrouped(reads, 100, 1500, held=takes) == [[(0, 0), (0, 1)], [(0, 2)]]
    apart = [[260, 259], [250]], [[512, 512], [256]]
    together = regrouped(apart[0], 100, 1536, held=apart[1], settled=False)
    assert together == [[(0, 0), (0, 1), (1, 0)]]
    assert regrouped(apart[0], 100, 1500, held=apart[1]) is None


def test_groups_that_take_more_than_there_is_room_for_are_told_apart_for_any_gain() -> None:
    now = [[100, 99]]
    assert regrouped(now, 1000, 200) is None
    assert regrouped(now, 1000, 199) == [[(0, 0)], [(0, 1)]]
    assert regrouped([[100], [99]], 1000, 199, settled=True) is None


def test_there_are_never_too_many_groups() -> None:
    now = [[value] for value in (1000, 900, 800, 700, 600)]
    found = regrouped(now, 0, UNBOUNDED)
    assert found is not None
    assert len(found) == MOST_GROUPS


@pytest.mark.parametrize("groups", [[], [[5]], [[5, 5]]])
def test_what_cannot_be_better_stays(groups: list[list[int]]) -> None:
    assert regrouped(groups, 1, UNBOUNDED, settled=False) is None


def test_nothing_takes_nothing() -> None:
    assert least_bytes([], 10) == 0
