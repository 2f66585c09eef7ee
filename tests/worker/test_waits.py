"""Who waits for whose prompt."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlxd.worker.engine import Prompt
from mlxd.worker.waits import LEAST_SHARED, Waits

pytestmark = pytest.mark.mlx

COMMON = list(range(1000))


def prompt(*tokens: int, shares: int = 0, **more: Any) -> Prompt:
    """Begins with `shares` tokens that others begin with, too."""
    return Prompt([*COMMON[:shares], *tokens], 5, mx.argmax, **more)


def waits(*prompts: Prompt, trimmable: bool = True) -> Waits:
    made = Waits(trimmable=trimmable)
    for uid, one in enumerate(prompts):
        made.add(uid, one)
    return made


def nothing() -> int:
    return 0


def test_prompts_that_begin_differently_wait_for_nobody():
    made = waits(prompt(1, 2, 3), prompt(1, 2, 3), prompt(9, shares=LEAST_SHARED - 1))
    assert all(made.lets(uid, dict.fromkeys(range(3), 0), nothing) for uid in range(3))


def test_what_is_read_before_it_is_waited_for_until_it_is_there():
    made = waits(prompt(7, 7, shares=500), prompt(8, 8, shares=500))
    assert made.lets(0, {}, nothing)
    assert made.lets(1, {}, nothing)
    assert not made.lets(1, {0: 0}, nothing)
    assert made.awaited(0) == [500]
    assert not made.lets(1, {0: 499}, nothing)
    assert made.lets(1, {0: 499}, lambda: 500 - LEAST_SHARED + 1)
    assert made.awaited(0) == []


def test_all_but_the_last_token_can_be_spared():
    made = waits(prompt(shares=300), prompt(shares=300), prompt(shares=400))
    made.lets(1, {0: 0}, nothing)
    made.lets(2, {0: 0}, nothing)
    assert made.awaited(0) == [299]
    assert not made.lets(2, {0: 0, 1: 0}, nothing)


def test_who_is_read_first_of_several_is_waited_for():
    made = waits(*[prompt(n, n, shares=300) for n in range(3)])
    assert not made.lets(2, {0: 0, 1: 0}, nothing)
    assert made.awaited(0) == [300]
    assert made.awaited(1) == []


def test_whoever_spares_more_is_waited_for():
    made = waits(prompt(7, shares=300), prompt(7, shares=600), prompt(9, shares=600))
    assert not made.lets(2, {0: 0, 1: 0}, nothing)
    assert made.awaited(1) == [600]


def test_when_what_was_waited_for_is_given_up_the_next_one_reads():
    made = waits(*[prompt(n, n, shares=300) for n in range(3)])
    assert not made.lets(1, {0: 0}, nothing)
    assert not made.lets(2, {0: 0, 1: 0}, nothing)
    made.leave(0, read=False)
    assert made.lets(1, {}, nothing)
    assert not made.lets(2, {1: 0}, nothing)
    assert made.awaited(1) == [300]


@pytest.mark.parametrize("midway", [False, True])
def test_who_waited_in_vain_waits_no_more(midway):
    made = waits(*[prompt(n, n, shares=300) for n in range(3)])
    for uid in (1, 2):
        assert not made.lets(uid, dict.fromkeys(range(uid), 0), nothing)
    if midway:
        before = {0: 301}
    else:
        before = {}
        made.leave(0, read=True)
    assert made.lets(1, before, nothing)
    assert made.lets(2, before | {1: 0}, nothing)


def test_a_cache_that_cannot_be_trimmed_is_of_no_use_once_it_holds_more():
    ahead, behind = prompt(7, 7, shares=500), prompt(8, 8, shares=500)
    assert waits(ahead, behind, trimmable=False).lets(1, {0: 501}, nothing)
    assert not waits(ahead, behind, trimmable=False).lets(1, {0: 499}, nothing)
    assert not waits(ahead, behind).lets(1, {0: 501}, nothing)


def test_where_a_turn_ends_just_before_they_part_that_is_kept():
    ends = {"boundaries": (200, 450)}
    made = waits(prompt(7, 7, shares=500, **ends), prompt(8, 8, shares=500), trimmable=False)
    assert not made.lets(1, {0: 0}, nothing)
    assert made.awaited(0) == [450]


def test_of_another_owners_prompt_only_what_everybody_shares_is_waited_for():
    one = prompt(7, 7, shares=500, owner="a", shared=300)
    two = prompt(8, 8, shares=500, owner="b")
    for trimmable in (False, True):
        made = waits(one, two, trimmable=trimmable)
        assert not made.lets(1, {0: 0}, nothing)
        assert made.awaited(0) == [300]
    assert waits(prompt(7, shares=500, owner="a"), two).lets(1, {0: 0}, nothing)
    early = prompt(8, shares=250, owner="b")
    assert waits(one, early, trimmable=False).lets(1, {0: 0}, nothing)
    assert not waits(one, early).lets(1, {0: 0}, nothing)


def test_ten_long_prompts_are_compared_in_no_time():
    made = Waits(trimmable=True)
    tokens = list(range(100_000))
    for uid in range(10):
        made.add(uid, Prompt([*tokens, uid], 5, mx.argmax))
    assert not made.lets(9, {0: 0}, nothing)
    assert made.awaited(0) == [100_000]
