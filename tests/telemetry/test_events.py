"""The daemon's decisions, the last of them, in order."""

from __future__ import annotations

from mlxd.core.clock import ManualClock
from mlxd.telemetry.events import KEPT, Events


def test_events_are_told_in_order_from_where_one_left_off() -> None:
    clock = ManualClock()
    events = Events(clock)
    first = events.record("policy_reload", "one", {"generation": 2})
    clock.advance(5.0)
    events.record("policy_reload", "two")
    assert [event.message for event in events.since()] == ["one", "two"]
    assert [event.message for event in events.since(first.id)] == ["two"]
    assert first.as_json() == {
        "id": 1, "at": clock.wall() - 5.0, "type": "policy_reload", "message": "one",
        "data": {"generation": 2},
    }  # fmt: skip


def test_the_oldest_are_forgotten() -> None:
    events = Events(ManualClock())
    for number in range(KEPT + 10):
        events.record("x", str(number))
    assert len(events.since()) == KEPT
    assert events.since()[0].message == "10"
