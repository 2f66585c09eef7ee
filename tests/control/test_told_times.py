"""What admission tells of a request's times: exact enough to play them again."""

from __future__ import annotations

import asyncio

import pytest

from mlxd.control.admission import Admission
from mlxd.control.applicant import Applicant
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import Overloaded
from mlxd.core.story import Story
from tests.support.traffic import policies

CALLER = Caller("10.0.0.1")
ONE = {"limits.concurrency.max_in_flight": "1", "limits.concurrency.max_waiting": "5"}


def story_on(clock: ManualClock) -> Story:
    return Story("", "", CALLER, 1, 0.0, clock.monotonic, clock.monotonic())


async def test_a_slot_is_held_from_the_decision_on_whatever_the_loop_does() -> None:
    clock = ManualClock()
    rules = policies(ONE)
    admission = Admission(clock, rules)
    story = story_on(clock)
    applicant = Applicant(CALLER, rules, "m", cost=7.0, priority="high", user="kim")
    first = admission.enter(Applicant(CALLER, rules, "m"))
    clock.advance(0.5)  # the body arrives

    async def run() -> None:
        async with admission.admit(applicant, story=story):
            clock.advance(2.0)

    waits = asyncio.create_task(run())
    await asyncio.sleep(0)
    assert (story.judged, story.admitted, story.released) == (0.5, None, None)
    assert (story.wished, story.priority, story.cost, story.user) == ("high", "high", 7.0, "kim")
    clock.advance(4.0)
    admission.leave(first)
    clock.advance(0.25)  # the loop is busy
    await waits
    assert (story.judged, story.admitted, story.released) == (0.5, 4.5, 6.75)


async def test_one_that_is_refused_tells_what_it_was_judged_by() -> None:
    clock = ManualClock()
    rules = policies({"limits.concurrency.max_in_flight": "1"})
    admission = Admission(clock, rules)
    admission.enter(Applicant(CALLER, rules, "m"))
    story = story_on(clock)
    clock.advance(0.5)
    with pytest.raises(Overloaded):
        async with admission.admit(Applicant(CALLER, rules, "m", cost=9.0), story=story):
            pass
    assert (story.judged, story.admitted, story.cost, story.wished) == (0.5, None, 9.0, None)
