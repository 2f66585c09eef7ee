"""Who is let in beside whom, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxd.control.gate import Gate, Turn


async def test_many_are_inside_beside_each_other():
    gate = Gate()
    assert all(gate.enter(alone=False).ready.done() for _ in range(5))


async def test_one_who_must_be_alone_waits_for_the_others_and_they_for_it():
    gate = Gate()
    first = gate.enter(alone=False)
    alone = gate.enter(alone=True)
    later = gate.enter(alone=False)
    waiting = [gate.waiting]
    assert not alone.ready.done()
    assert not later.ready.done(), "it would overtake"
    first.leave()
    assert alone.ready.done()
    assert not later.ready.done()
    assert [*waiting, gate.waiting] == [2, 1]
    alone.leave()
    assert later.ready.done()


async def test_who_need_not_be_alone_any_more_lets_others_in():
    gate = Gate()
    alone, other, next_one = (gate.enter(alone=how) for how in (True, False, True))
    alone.share()
    assert other.ready.done()
    assert not next_one.ready.done()
    other.leave()
    alone.leave()
    assert next_one.ready.done()


async def test_one_that_is_given_up_in_the_queue_holds_nobody_up():
    gate = Gate()
    inside = gate.enter(alone=False)
    waiting = gate.enter(alone=True)
    behind = gate.enter(alone=False)
    waiting.ready.cancel()
    waiting.leave()
    assert behind.ready.done()
    waiting.leave()
    inside.leave()
    behind.leave()
    assert gate.enter(alone=True).ready.done()


def asked(gate: Gate, turns: list[Turn], **how: Any) -> Turn:
    """One that makes way when it is asked to, and is then in `turns`."""

    def make_way(turn: Turn) -> bool:
        turns.append(turn)
        return True

    return gate.enter(make_way=make_way, **how)


async def test_interrupted_ones_enter_before_new_ones_and_those_who_must_be_alone_first():
    gate = Gate()
    inside = gate.enter(alone=True)
    new = gate.enter(alone=False)
    early = gate.enter(alone=False, early=True)
    first = gate.enter(alone=True, early=True)
    inside.leave()
    assert [turn.ready.done() for turn in (first, early, new)] == [True, False, False]
    first.share()
    assert early.ready.done()
    assert new.ready.done()


async def test_those_inside_make_way_once_for_one_who_must_be_alone():
    gate = Gate()
    left: list[Turn] = []
    one, two = (asked(gate, left, alone=False) for _ in range(2))
    alone = asked(gate, left, alone=True)
    assert set(left) == {one, two}
    for turn in (one, two):
        turn.leave()
        assert not asked(gate, left, alone=False, early=True).ready.done(), "it stands behind"
    assert alone.ready.done()
    alone.share()
    assert not gate.waiting
    assert set(left) == {one, two}


async def test_one_that_is_alone_is_left_alone_and_makes_way_as_soon_as_it_need_not_be():
    gate = Gate()
    left: list[Turn] = []
    one = asked(gate, left, alone=True, early=True)
    two = asked(gate, left, alone=True, early=True)
    assert not left
    one.share()
    assert left == [one]
    one.leave()
    assert two.ready.done()


async def test_one_that_says_no_is_asked_again_when_it_says_so():
    gate = Gate()
    answers = [False, True]
    inside = gate.enter(alone=False, make_way=lambda turn: answers.pop(0))
    gate.enter(alone=True)
    assert answers == [True]
    inside.ask()
    assert not answers
    gate.enter(alone=False)
    inside.ask()


@given(st.lists(st.tuples(st.sampled_from(["enter", "alone", "leave", "share"]), st.integers(0))))
def test_alone_means_alone_and_when_all_have_left_nobody_waits(steps):
    async def run() -> None:
        gate = Gate()
        turns: list[Turn] = []
        for step, number in steps:
            if step in ("enter", "alone"):
                turns.append(gate.enter(alone=step == "alone"))
            elif turns:
                turn = turns[number % len(turns)]
                if step == "leave":
                    turn.leave()
                    turns.remove(turn)
                elif turn.ready.done():
                    turn.share()
            inside = [turn for turn in turns if turn.ready.done()]
            assert len(inside) <= 1 or not any(turn.alone for turn in inside)
            assert inside or not turns, "somebody waits for nobody"
            order = [turn.ready.done() for turn in turns]
            assert order == sorted(order, reverse=True), "overtaken"
        for turn in turns:
            turn.leave()
        assert gate.enter(alone=True).ready.done()

    asyncio.run(run())
