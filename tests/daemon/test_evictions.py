"""Evictions as events: who left for whom, by which numbers and which policy."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.control.judgement import Cause
from mlxd.core.clock import ManualClock
from mlxd.core.errors import PolicyLine
from mlxd.daemon.evictions import Evictions
from mlxd.telemetry.events import Events

RESERVE = PolicyLine("memory.reserve.system", "auto", "memory.yaml:3")
MARK = PolicyLine("memory.watermarks.critical.enter", "92%", "memory.yaml:9")
GIB = 2**30


class Bench:
    line = MARK
    """As the guard has it."""

    def __init__(self) -> None:
        self.counted: list[str] = []
        self.events = Events(ManualClock())
        whole: Any = self
        self.add = Evictions(self.events, whole, whole).add

    def evicted(self, reason: str) -> None:
        self.counted.append(reason)

    def told(self, cause: Cause) -> tuple[str, dict[str, Any]]:
        self.add("small", 7, cause)
        event = self.events.since()[-1]
        assert event.type == "evict"
        return event.message, dict(event.data)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_one_that_left_for_another(bench: Bench) -> None:
    words, data = bench.told(Cause("load", "large", 20 * GIB, 18 * GIB, RESERVE))
    assert words == (
        "small had to leave memory: load of large, which needs 20 GiB; 18 GiB are available"
        " (memory.reserve.system: auto (memory.yaml:3))"
    )
    assert data == {
        "model": "small", "reason": "load", "bytes": 7, "for": "large",
        "needed": 20 * GIB, "available": 18 * GIB,
        "policy": "memory.reserve.system", "place": "memory.yaml:3",
    }  # fmt: skip
    assert bench.counted == ["load"]


def test_one_that_a_mark_had_dropped_names_that_and_is_counted_elsewhere(bench: Bench) -> None:
    _, data = bench.told(Cause("watermark"))
    assert (data["policy"], data["place"]) == (MARK.key, MARK.place)
    assert data["for"] is data["needed"] is data["available"] is None
    assert bench.counted == []


def test_where_memory_was_not_the_reason_no_bytes_are_told(bench: Bench) -> None:
    words, data = bench.told(Cause("load", "large"))
    assert words == "small had to leave memory: load of large"
    assert data["needed"] is data["available"] is None


def test_one_of_too_many(bench: Bench) -> None:
    words, data = bench.told(Cause("max_loaded"))
    assert words == "small had to leave memory: max_loaded"
    assert data["policy"] is None
