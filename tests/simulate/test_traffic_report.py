"""What people, programs and pictures are told of a simulation."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from mlxd.simulate.traffic.image import svg
from mlxd.simulate.traffic.outcome import LEFT, Outcome
from mlxd.simulate.traffic.report import (
    EVERY,
    Comparison,
    Side,
    figures_of,
    is_refusal,
    percentile,
    seconds,
)


def outcome(
    wait: float | None = 0.0, code: str = "", tenant: str = "agents", klass: str = "low"
) -> Outcome:
    ttft = wait + 0.5 if wait is not None and not code else None
    return Outcome(tenant, klass, "tiny", code, wait, ttft, loaded=wait == 3.0)


BEFORE = Side("as it was", [outcome(1.0), outcome(None, "queue_full"), outcome(3.0)], 1, 0)
AFTER = Side("simulated under <new>", [outcome(), outcome(), outcome(klass="high")], 0, 0)
BOTH = Comparison(BEFORE, AFTER, 600.0, ("something is odd",))


def test_a_percentile_is_one_of_what_was_measured() -> None:
    assert [percentile([1, 2, 3, 4], share) for share in (0.01, 0.5, 0.51, 0.99)] == [1, 2, 3, 4]
    assert percentile([], 0.5) is None


def test_figures_of_a_group() -> None:
    several = [outcome(), outcome(3.0), outcome(1.0, LEFT), outcome(None, "queue_full"),
               outcome(None, "rate_limited"), outcome(None, "invalid_request")]  # fmt: skip
    figures = figures_of(several)
    assert (figures.requests, figures.served, figures.refused, figures.loads) == (6, 2, 2, 1)
    assert figures.refused_share == 2 / 6
    assert (figures.wait_p50, figures.wait_p99) == (1.0, 3.0)
    assert (figures.ttft_p50, figures.ttft_p99) == (0.5, 3.5)
    assert figures_of([]).refused_share == 0.0


def test_refusals_are_what_admission_refuses() -> None:
    refusals = ("rate_limited", "tenant_busy", "overloaded", "queue_timeout", "shed", "models_busy")
    assert all(map(is_refusal, refusals))
    assert not any(map(is_refusal, ("", LEFT, "invalid_request", "worker_crashed_")))


def test_rows_are_of_whoever_is_there_before_or_after_and_all_come_last() -> None:
    groups = [(group, b.requests, a.requests) for group, b, a in BOTH.rows()]
    assert groups == [(("agents", "high"), 0, 1), (("agents", "low"), 3, 2), ((EVERY, EVERY), 3, 3)]


def test_the_table_is_aligned_and_says_what_people_ask() -> None:
    text = str(BOTH)
    table = [line for line in text.splitlines() if " before " in line or " after " in line]
    assert len(table) == 6
    assert len({line.index("before") for line in table if "before" in line}) == 1
    assert "agents  low    before         3       2       1 s       3 s" in text
    assert "queue_full 1" in text
    assert "loads 1 -> 0, evictions 0 -> 0" in text
    assert text.endswith("warning: something is odd")


def test_times_are_short() -> None:
    assert [seconds(one) for one in (None, 0.0, 0.0123, 0.9, 0.9996, 1.5, 75.125)] == [
        "-", "0 s", "12.3 ms", "900 ms", "0.9996 s", "1.5 s", "75.12 s",
    ]  # fmt: skip


def test_programs_are_told_the_same() -> None:
    told = BOTH.as_json()
    assert told["before"]["name"] == "as it was"
    low = next(one for one in told["groups"] if (one["tenant"], one["class"]) == ("agents", "low"))
    assert low["before"] == {
        "requests": 3, "served": 2, "wait_p50": 1.0, "wait_p99": 3.0, "ttft_p50": 1.5,
        "ttft_p99": 3.5, "loads": 1, "refused": 1, "codes": {"queue_full": 1},
    }  # fmt: skip


def test_the_picture_is_one_and_no_name_breaks_it() -> None:
    wild = Comparison(BEFORE, Side("<&>", [outcome(tenant='a"<b>')], 0, 0), 1.0)
    for comparison in (BOTH, wild, Comparison(Side("", [], 0, 0), Side("", [], 0, 0), 0.0)):
        root = ET.fromstring(svg(comparison))
        bars = root.findall(".//{http://www.w3.org/2000/svg}rect")
        assert len(bars) == 3 + 6 * len(comparison.rows())
