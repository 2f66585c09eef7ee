"""Refusals as events: a flood of them does not push everything else out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlxd.core.errors import MlxdError, Overloaded, PolicyLine, RateLimited
from mlxd.telemetry.events import Event, Events
from mlxd.telemetry.rejections import EACH, Rejections
from tests.support.virtual_time import VirtualLoop

LINE = PolicyLine("limits.concurrency.max_in_flight", "1", "limits.yaml:3")
BUSY = Overloaded(
    "every slot is taken", retry_after=1.23, policy=LINE, numbers={"running": 1}, would_pass="later"
)


class Bench:
    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.events = Events(loop)
        self.rejections = Rejections(self.events)

    def refuse(self, count: int = 1, error: MlxdError = BUSY, model: str = "m") -> None:
        for _ in range(count):
            self.loop.do(lambda: self.rejections.add(error, 503, model=model, client="127.0.0.1"))

    def found(self, code: str = "overloaded") -> list[Event]:
        return [event for event in self.events.since() if event.data["code"] == code]

    def counts(self, code: str = "overloaded") -> list[int]:
        return [event.data["count"] for event in self.found(code)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    loop = VirtualLoop()
    yield Bench(loop)
    loop.close()


def test_a_refusal_says_why_and_to_whom(bench: Bench) -> None:
    bench.refuse()
    (event,) = bench.found()
    assert event.type == "reject"
    assert event.message == "refused with 503 overloaded: every slot is taken"
    assert event.data == {
        "code": "overloaded", "status": 503, "model": "m", "client": "127.0.0.1",
        "policy": "limits.concurrency.max_in_flight", "place": "limits.yaml:3",
        "numbers": {"running": 1}, "would_pass": "later", "retry_after": 1.2, "count": 1,
    }  # fmt: skip


def test_a_few_are_told_one_by_one_and_the_rest_together(bench: Bench) -> None:
    bench.refuse(50)
    assert bench.counts() == [1] * EACH
    bench.loop.advance(1.0)
    assert bench.counts() == [1] * EACH + [50 - EACH]
    assert bench.found()[-1].message == "47 more refused with 503 overloaded"


def test_what_those_do_not_share_is_null(bench: Bench) -> None:
    bench.refuse(EACH + 1)
    bench.refuse(model="other")
    bench.loop.advance(1.0)
    data = bench.found()[-1].data
    assert (data["model"], data["client"], data["count"]) == (None, "127.0.0.1", 2)


def test_each_code_counts_by_itself(bench: Bench) -> None:
    bench.refuse(20)
    bench.refuse(error=RateLimited("too many"))
    assert bench.counts("rate_limited") == [1]


def test_an_hour_of_flood_leaves_room_for_everything_else(bench: Bench) -> None:
    for _ in range(3600):
        bench.refuse(10)
        bench.loop.advance(1.0)
    assert len(bench.found()) < 150
    bench.loop.advance(60.0)
    assert sum(bench.counts()) == 36_000


def test_after_a_flood_each_is_told_again(bench: Bench) -> None:
    for _ in range(100):
        bench.refuse(10)
        bench.loop.advance(1.0)
    bench.loop.advance(120.0)
    before = len(bench.found())
    bench.refuse(2)
    assert bench.counts()[before:] == [1, 1]


def test_at_the_end_none_is_left_untold(bench: Bench) -> None:
    bench.refuse(10)
    bench.loop.do(bench.rejections.close)
    assert sum(bench.counts()) == 10
    bench.loop.advance(5.0)
    assert sum(bench.counts()) == 10


def test_many_that_are_alike_are_told_as_one(bench: Bench) -> None:
    bench.refuse()
    add = bench.rejections.add
    bench.loop.do(lambda: add(BUSY, 503, model="m", client="127.0.0.1", count=400))
    bench.refuse()
    bench.loop.do(bench.rejections.close)
    assert bench.counts() == [1, 1, 400]
