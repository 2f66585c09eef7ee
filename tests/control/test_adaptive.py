"""Adaptive concurrency on a clock of numbers: a toy server whose latency grows with its width."""

from __future__ import annotations

import heapq
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mlxd.control.adaptive import Adaptive
from mlxd.control.applicant import Applicant
from mlxd.core.caller import Caller, Priority
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

DEFAULTS: dict[str, Any] = {
    "enabled": "true", "min": 2, "max": 20, "ttft": "1s", "token_gap": "100ms", "interval": "10s",
}  # fmt: skip


def policies(folder: Path, slots: int = 32, **adaptive: Any) -> PolicySet:
    written = "".join(f"  {key}: {value}\n" for key, value in (DEFAULTS | adaptive).items())
    text = f"concurrency: {{max_in_flight: {slots}}}\nadaptive:\n{written}"
    return load(write_policies(folder, {"limits": text}))


@pytest.fixture
def adaptive(tmp_path: Path) -> Adaptive:
    return Adaptive(policies(tmp_path))


def asks(policies: PolicySet, priority: Priority) -> Applicant:
    return Applicant(Caller("10.0.0.1"), policies, "m", priority=priority)


def shed(adaptive: Adaptive) -> list[Priority]:
    return list(adaptive.sheds)


class Server:
    """As many run as may, always; each token takes `per_row` seconds for each that runs."""

    def __init__(self, adaptive: Adaptive, slots: int = 32) -> None:
        self.adaptive = adaptive
        self.slots = slots
        self.per_row = 0.01
        self.now = 0.0
        self.ends: list[float] = []
        self.limits: list[int] = []

    def run(self, seconds: float) -> list[int]:
        """The limits that it went by."""
        until, self.limits = self.now + seconds, []
        while self.now < until:
            self.now += 0.25
            while self.ends and self.ends[0] <= self.now:
                heapq.heappop(self.ends)
            self.limits.append(self.adaptive.limit(self.slots))
            gap = self.per_row * max(self.limits[-1], len(self.ends))
            while len(self.ends) < self.limits[-1]:
                self.adaptive.observe(self.now, ttft=4 * gap)
                heapq.heappush(self.ends, self.now + 20 * gap)
            self.adaptive.observe(self.now, gap=gap)
            self.adaptive.look(self.now)
            self.adaptive.ran(len(self.ends))
        return self.limits


def late(adaptive: Adaptive, start: float, **seconds: float) -> None:
    """One interval, beginning at `start`, with one sample of each."""
    adaptive.look(start)
    adaptive.observe(start + 1, **seconds)
    adaptive.look(start + 10)


def test_what_is_not_enabled_allows_everything(tmp_path: Path) -> None:
    adaptive = Adaptive(load())
    late(adaptive, 0, ttft=100.0, gap=100.0)
    assert adaptive.limit(7) == 7
    assert shed(adaptive) == []
    assert not adaptive.missed_total
    adaptive.apply(policies(tmp_path))
    assert adaptive.limit(32) == 20


def test_it_finds_the_width_that_the_aims_allow_and_stays_there(adaptive: Adaptive) -> None:
    server = Server(adaptive)
    server.run(300)
    settled = server.run(600)
    assert 6 <= min(settled) <= max(settled) <= 11  # 10 rows have 100 ms


def test_a_server_that_becomes_slower_and_faster_again_is_followed(adaptive: Adaptive) -> None:
    server = Server(adaptive)
    server.run(300)
    server.per_row = 0.03
    slow = server.run(300)
    assert slow[-1] in (2, 3, 4)
    server.per_row = 0.001
    server.run(20)
    fast = server.run(600)
    assert fast[-1] == 20
    assert set(slow) | set(fast) <= set(range(2, 21))
    steps = [after - before for before, after in pairwise(fast)]
    assert set(steps) == {0, 1}


def test_a_server_that_is_always_too_slow_keeps_the_fewest(adaptive: Adaptive) -> None:
    server = Server(adaptive)
    server.per_row = 0.5
    limits = server.run(2000)
    assert limits[-1] == 2
    assert limits == sorted(limits, reverse=True)


def test_one_interval_beyond_an_aim_takes_a_quarter(adaptive: Adaptive) -> None:
    seen = []
    for number in range(8):
        late(adaptive, 10.0 * number, ttft=1.1)
        seen.append(adaptive.limit(32))
    assert seen == [15, 11, 8, 6, 4, 3, 2, 2]
    assert adaptive.missed_total == {"ttft": 8}


def test_more_are_allowed_only_where_all_were_in_use(adaptive: Adaptive) -> None:
    late(adaptive, 0, gap=0.2)
    assert adaptive.limit(32) == 15
    adaptive.look(10)
    adaptive.ran(14)
    late(adaptive, 10, gap=0.05)
    assert adaptive.limit(32) == 15
    adaptive.look(20)
    adaptive.ran(15)
    adaptive.look(21)
    adaptive.ran(3)
    late(adaptive, 20, gap=0.05)
    assert adaptive.limit(32) == 16


def test_while_more_run_than_may_it_is_not_lowered_further(adaptive: Adaptive) -> None:
    adaptive.look(0)
    adaptive.ran(20)
    for start in (0, 10, 20):
        late(adaptive, start, gap=0.2)
    assert adaptive.limit(32) == 15
    adaptive.look(30)
    adaptive.ran(15)
    late(adaptive, 30, gap=0.2)
    assert adaptive.limit(32) == 11


def test_an_interval_without_samples_changes_nothing_while_something_runs(
    adaptive: Adaptive,
) -> None:
    late(adaptive, 0, ttft=5.0)
    adaptive.look(10)
    adaptive.ran(15)
    adaptive.look(30)
    assert adaptive.limit(32) == 15
    assert shed(adaptive) == ["low"]
    adaptive.look(31)
    adaptive.ran(0)
    adaptive.look(50)
    assert shed(adaptive) == []
    assert adaptive.limit(32) == 15


def test_an_aim_that_was_missed_stays_so_until_it_is_measured_again(adaptive: Adaptive) -> None:
    adaptive.look(0)
    adaptive.ran(20)
    late(adaptive, 0, ttft=5.0)
    adaptive.look(10)
    adaptive.ran(15)
    late(adaptive, 10, gap=0.01)
    assert [one.aim for one in adaptive.missed()] == ["ttft"]
    assert adaptive.limit(32) == 15
    assert adaptive.missed_total == {"ttft": 1}
    late(adaptive, 20, ttft=0.5)
    assert adaptive.missed() == []


def test_the_percentile_decides(tmp_path: Path) -> None:
    for share, limit in (("50%", 20), ("90%", 15)):
        adaptive = Adaptive(policies(tmp_path, percentile=share))
        for number in range(10):
            adaptive.observe(number / 10, gap=0.05 if number < 8 else 0.5)
        adaptive.look(10)
        assert adaptive.limit(32) == limit


def test_the_samples_of_an_interval_are_bounded_and_even(adaptive: Adaptive) -> None:
    for number in range(100_000):
        adaptive.observe(number / 10_001, gap=number / 1e6)
    assert len(adaptive._samples["token_gap"]) <= 1024
    adaptive.look(10)
    assert adaptive.as_json()["measured"] == {"token_gap": pytest.approx(0.09, abs=0.0005)}


def test_edits_hold_at_once(adaptive: Adaptive, tmp_path: Path) -> None:
    late(adaptive, 0, ttft=5.0)
    assert adaptive.limit(32) == 15
    adaptive.apply(policies(tmp_path, max=6))
    assert adaptive.limit(32) == 6
    adaptive.apply(policies(tmp_path, min=9))
    assert adaptive.limit(32) == 9
    assert shed(adaptive) == ["low"]
    adaptive.apply(policies(tmp_path, ttft="6s"))
    assert shed(adaptive) == []
    adaptive.apply(policies(tmp_path, enabled="false"))
    assert adaptive.limit(32) == 32
    adaptive.apply(policies(tmp_path))
    assert adaptive.limit(32) == 20
    assert adaptive.missed() == []


def test_max_in_flight_stays_the_most(tmp_path: Path) -> None:
    adaptive = Adaptive(policies(tmp_path, slots=4))
    assert adaptive.limit(4) == 4
    adaptive.apply(policies(tmp_path, slots=1))
    assert adaptive.limit(1) == 1
    late(adaptive, 0, ttft=5.0)
    assert adaptive.limit(1) == 1


def test_low_is_shed_first_then_medium_and_never_high(tmp_path: Path) -> None:
    rules = policies(tmp_path, min=3, max=4)
    adaptive = Adaptive(rules)
    seen = []
    for number in range(4):
        late(adaptive, 10.0 * number, gap=0.25)
        seen.append((adaptive.limit(32), shed(adaptive)))
    assert seen == [
        (3, ["low"]),
        (3, ["medium", "low"]),
        (3, ["medium", "low"]),
        (3, ["medium", "low"]),
    ]
    assert adaptive.shed(asks(rules, "high"), 41.0) is None
    error = adaptive.shed(asks(rules, "medium"), 44.0)
    assert error is not None
    assert (error.code, error.retry_after) == ("shed", 6.0)
    assert error.message == (
        "the time per token is 0.25 s, and 0.1 s is aimed for: requests of class medium do not"
        " wait now (server busy, please try again)"
    )
    assert error.policy is not None
    assert error.policy.key == "limits.adaptive.token_gap"
    assert error.numbers == {
        "rule": "shed:medium", "measured": 0.25, "aim": 0.1, "limit": 3, "class": "medium",
    }  # fmt: skip
    assert error.would_pass == "a request of class high, or one that finds a free slot"
    late(adaptive, 40, gap=0.05)
    assert shed(adaptive) == []
    assert adaptive.shed(asks(rules, "low"), 51.0) is None


def test_nobody_is_told_to_come_back_in_ten_minutes(tmp_path: Path) -> None:
    rules = policies(tmp_path, min=4, max=4, interval="10m")
    adaptive = Adaptive(rules)
    adaptive.look(0.0)
    adaptive.observe(1.0, gap=0.25)
    adaptive.look(600.0)
    for now, told in ((601.0, 30.0), (1180.0, 20.0), (1199.5, 1.0)):
        error = adaptive.shed(asks(rules, "low"), now)
        assert error is not None
        assert error.retry_after == told


def test_it_says_when_something_has_changed_for_those_who_ask(adaptive: Adaptive) -> None:
    assert not adaptive.observe(0.0, gap=0.2)
    assert not adaptive.look(9.0)
    adaptive.ran(20)
    assert adaptive.look(10.0)
    assert not adaptive.look(10.0)
    assert adaptive.observe(10.0, gap=0.05) is False
    adaptive.ran(3)
    assert adaptive.look(20.0), "low is not refused any more, though the limit is what it was"


def test_a_refusal_names_the_policy_that_bounds(adaptive: Adaptive) -> None:
    assert adaptive.key == "limits.adaptive.max"
    late(adaptive, 0, ttft=5.0)
    assert adaptive.key == "limits.adaptive.ttft"
    late(adaptive, 10, ttft=0.5)
    assert adaptive.key == "limits.adaptive.enabled"


def test_medium_is_shed_when_the_fewest_miss_an_aim_again_and_not_at_once(tmp_path: Path) -> None:
    adaptive = Adaptive(policies(tmp_path, min=4, max=4))
    seen = []
    for number, gap in enumerate((0.25, 0.25, 0.05, 0.25)):
        late(adaptive, 10.0 * number, gap=gap)
        seen.append(shed(adaptive))
    assert seen == [["low"], ["medium", "low"], [], ["low"]]
