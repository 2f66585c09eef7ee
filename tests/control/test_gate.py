"""Who is let in beside whom, and that nobody waits for ever."""

from __future__ import annotations

import asyncio

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
    contested = [gate.contested]
    assert not alone.ready.done()
    assert not later.ready.done(), "it would overtake"
    first.leave()
    assert alone.ready.done()
    assert not later.ready.done()
    assert [*contested, gate.contested] == [True, False]
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
