"""Marks are entered and left with hysteresis; told the time, so a year takes no time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.control.watermarks import Level, Mark, Waterline, marks_of
from mlxd.policy.schema.memory import Memory

W, C, E = Level.WARNING, Level.CRITICAL, Level.EMERGENCY
SHIPPED = marks_of(Memory())


def after(*shares: float, against=SHIPPED, pressure=Level.NORMAL) -> list[Level]:
    """The level after each share, 10 s apart."""
    line = Waterline()
    return [line.observe(against, share, pressure, i * 10.0) for i, share in enumerate(shares)]


def test_marks_are_entered_from_below_and_left_below_their_clear() -> None:
    assert after(0.84, 0.85, 0.951, 0.981, 0.94, 0.929, 0.901, 0.899, 0.81, 0.799) == [
        0, W, C, E, E, C, C, W, W, 0,
    ]  # fmt: skip


def test_over_critical_and_emergency_is_above_them_and_warning_begins_at_its_mark() -> None:
    assert after(0.85, 0.95, 0.98) == [W, W, C]


def test_a_jump_to_the_top_and_back_takes_one_reading_each() -> None:
    assert after(0.99, 0.1) == [E, Level.NORMAL]


def test_auto_clear_is_five_points_below_and_never_less_than_half() -> None:
    assert [round(mark.clear, 4) for mark in SHIPPED] == [0.8, 0.9, 0.93]
    low = marks(warning={"enter": "6%"})
    assert low[0].clear == pytest.approx(0.03)


def marks(**watermarks: dict[str, str]) -> tuple[Mark, ...]:
    return marks_of(Memory.model_validate({"watermarks": watermarks}))


def test_a_mark_counts_after_it_was_reached_for_long_enough_without_a_break() -> None:
    held = marks(warning={"for": "30s"})
    readings = (0.9, 0.9, 0.84, 0.9, 0.9, 0.9, 0.9)
    assert after(*readings, against=held) == [0, 0, 0, 0, 0, 0, W]
    line = Waterline()
    line.observe(held, 0.9, Level.NORMAL, 100.0)
    assert line.due(held, 110.0) == 20.0
    line.observe(held, 0.1, Level.NORMAL, 110.0)
    assert line.due(held, 110.0) == math.inf


def test_a_higher_mark_that_counts_at_once_takes_a_lower_one_along() -> None:
    held = marks(warning={"for": "1h"})
    assert after(0.96, 0.86, against=held) == [C, W]


def test_what_the_system_calls_pressure_is_at_least_that_mark() -> None:
    assert after(0.1, pressure=W) == [W]
    assert after(0.1, pressure=C) == [C]
    line = Waterline()
    line.observe(SHIPPED, 0.1, C, 0.0)
    assert line.observe(SHIPPED, 0.1, W, 1.0) == W
    assert line.observe(SHIPPED, 0.1, Level.NORMAL, 2.0) == Level.NORMAL


LOW = {"warning": {"enter": "60%"}, "critical": {"enter": "70%"}, "emergency": {"enter": "80%"}}


def edited(before: tuple[Mark, ...], *shares: float, to: tuple[Mark, ...]) -> list[Level]:
    """The levels before and after an edit, at each share."""
    line = Waterline()
    readings = [(marks, share) for share in shares for marks in (before, to)]
    return [
        line.observe(marks, share, Level.NORMAL, i * 10.0)
        for i, (marks, share) in enumerate(readings)
    ]


def test_marks_that_are_edited_upwards_hold_only_where_they_are_reached() -> None:
    assert edited(marks(**LOW), 0.94, to=SHIPPED) == [E, W]
    assert edited(marks(**LOW), 0.83, to=SHIPPED) == [E, Level.NORMAL]
    assert edited(marks(**LOW), 0.97, to=SHIPPED) == [E, C]


def test_an_edit_upwards_leaves_the_marks_that_it_does_not_touch() -> None:
    to = marks(**LOW | {"emergency": {"enter": "98%"}})
    line = Waterline()
    line.observe(marks(**LOW), 0.81, Level.NORMAL, 0.0)
    assert line.observe(to, 0.66, Level.NORMAL, 10.0) == C, "critical is left below 65 %"


def test_an_edit_that_makes_no_mark_harder_to_reach_ends_no_hysteresis() -> None:
    line = Waterline()
    line.observe(SHIPPED, 0.99, Level.NORMAL, 0.0)
    line.observe(SHIPPED, 0.94, Level.NORMAL, 10.0)
    lower = marks(emergency={"enter": "97%", "clear": "50%"})
    assert line.observe(lower, 0.94, Level.NORMAL, 20.0) == E


def test_a_longer_time_that_a_mark_has_not_lasted_ends_it_until_it_has() -> None:
    longer = marks(emergency={"for": "30s"})
    line = Waterline()
    levels = [line.observe(SHIPPED, 0.99, Level.NORMAL, 0.0)]
    levels += [line.observe(longer, 0.99, Level.NORMAL, now) for now in (10.0, 20.0, 30.0)]
    assert levels == [E, C, C, E]


@st.composite
def any_marks(draw) -> tuple[Mark, ...]:
    enters = sorted(draw(st.lists(st.integers(2, 100), min_size=3, max_size=3, unique=True)))
    return tuple(
        Mark(
            level,
            enter / 100,
            draw(st.integers(0, enter - 1)) / 100,
            float(draw(st.sampled_from([0, 0, 5, 30]))),
        )
        for level, enter in zip((W, C, E), enters, strict=True)
    )


READING = st.tuples(
    st.integers(0, 110).map(lambda percent: percent / 100),
    st.sampled_from([Level.NORMAL, Level.NORMAL, W, C]),
    st.sampled_from([0.1, 1.0, 5.0, 40.0]),
)


@given(any_marks(), st.lists(READING, max_size=40))
def test_no_mark_is_entered_unheld_or_left_uncleared(marks, readings) -> None:
    line, now = Waterline(), 0.0
    reached: dict[Level, float] = {}
    for share, pressure, later in readings:
        now += later
        before = line.level
        for mark in marks:
            if mark.reached(share, pressure):
                reached.setdefault(mark.level, now)
            else:
                reached.pop(mark.level, None)
        held = [m.level for m in marks if now - reached.get(m.level, math.inf) >= m.held]
        level = line.observe(marks, share, pressure, now)
        assert level == line.level
        if level > before:
            assert level == max(held)
        else:
            assert all(one <= level for one in held)
            left = [m for m in marks if level < m.level <= before]
            assert all(m.cleared(share, pressure) for m in left)
            if level > 0:
                assert not marks[level - 1].cleared(share, pressure)
        assert line.due(marks, now) >= 0


@given(any_marks(), any_marks(), st.lists(READING, max_size=30), st.integers(0, 30))
def test_a_fuller_memory_never_stands_lower(marks, others, readings, more) -> None:
    """The same story with each share higher by `more` points is at no time at a lower mark, not
    when the marks are edited in its middle either.
    """
    low, high, now = Waterline(), Waterline(), 0.0
    for i, (share, pressure, later) in enumerate(readings):
        marks = others if i == len(readings) // 2 else marks
        now += later
        lower = low.observe(marks, share, pressure, now)
        assert high.observe(marks, share + more / 100, pressure, now) >= lower
