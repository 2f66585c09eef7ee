"""Recorded traffic under the policies that it was recorded under is what it was, and under others
what these say.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mlxd.policy.policy_set import PolicySet
from mlxd.simulate.traffic.outcome import LEFT, Outcome, measured
from mlxd.simulate.traffic.reading import read
from mlxd.simulate.traffic.world import Result, World
from mlxd.telemetry.traffic import Known, Line, Loaded, Request
from tests.support.traffic import ZERO, House, day, opening, policies, refused, served, write

TWO = {"tiny": Known(bytes=100, seconds=4.0, loaded=True), "other": Known(bytes=50, seconds=3.0)}
BOTH = {
    "limits.concurrency.max_in_flight": "9",
    "memory.eviction.protect_recent": "0s",
    "memory.eviction.min_residency": "0s",
}


def simulated(
    tmp_path: Path, lines: Iterable[Line], under: PolicySet | dict[str, str], **first: Any
) -> Result:
    log = read([write(tmp_path / "log", lines, opening(**first))])
    return World(log, under if isinstance(under, PolicySet) else policies(under)).run()


def codes(result: Result) -> list[str]:
    return [one.code for one in result.outcomes]


def waits(result: Result) -> list[float | None]:
    return [round(one.wait, 6) if one.wait is not None else None for one in result.outcomes]


def same(one: Outcome, other: Outcome) -> bool:
    return (
        (one.tenant, one.klass, one.model, one.code, one.loaded)
        == (other.tenant, other.klass, other.model, other.code, other.loaded)
        and one.wait == (pytest.approx(other.wait, abs=1e-5) if other.wait is not None else None)
        and one.ttft == (pytest.approx(other.ttft, abs=1e-5) if other.ttft is not None else None)
    )


@pytest.mark.parametrize(
    "house",
    [
        House(),
        House(slots=5, max_waiting=20, queue=8.0, requests=1000, gap=0.35),
        House(slots=1, max_waiting=4, queue=2.5),
        House(slots=3, max_waiting=0, clients="abcd", requests=12, window=20.0),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_a_day_is_what_it_was(tmp_path: Path, house: House, seed: int) -> None:
    lines = day(house, seed, count=300)
    result = simulated(tmp_path, lines, house.policies())
    was = measured(sorted(lines, key=lambda one: one.at))
    wrong = [
        (n, x, y)
        for n, (x, y) in enumerate(zip(result.outcomes, was, strict=True))
        if not same(x, y)
    ]
    assert wrong == []
    assert len(Counter(one.code for one in was)) >= 3  # else it shows little


def test_what_holds_those_without_a_key_does_not_hold_the_owner(tmp_path: Path) -> None:
    """As it did not when `mlxd bench` asked."""
    lines = [served(0.1 * n, owner=n < 3, rated=n >= 3) for n in range(4)]
    anonymous = {"clients.tenants": "{anonymous: {models: [other], daily_tokens: 1}}"}
    assert codes(simulated(tmp_path, lines, anonymous)) == ["", "", "", "forbidden"]


def test_a_raised_limit_lets_in_who_was_refused(tmp_path: Path) -> None:
    """They take what is usual: half a second to the first token, 2 s behind it, 20 tokens."""
    lines = [
        served(0.0), served(0.1, address="b"),
        refused(0.2, "overloaded", 503), refused(0.3, "overloaded", 503, max_tokens=5),
    ]  # fmt: skip
    two = {"limits.concurrency.max_in_flight": "2", "limits.rate_limit": "[]"}
    assert codes(simulated(tmp_path, lines, two)) == ["", "", "overloaded", "overloaded"]
    queue = two | {"limits.concurrency.max_waiting": "5"}
    result = simulated(tmp_path, lines, queue)
    assert codes(result) == [""] * 4
    assert waits(result) == [0.0, 0.0, 2.3, 2.3]
    assert [round(one.ttft or 0.0, 6) for one in result.outcomes] == [0.5, 0.5, 2.8, 2.8]
    first_of_two = simulated(tmp_path, lines, queue | {"limits.concurrency.max_in_flight": "1"})
    assert waits(first_of_two) == [0.0, 2.4, 4.8, 7.2]
    assert [one.ttft for one in first_of_two.outcomes][-1] == pytest.approx(7.7)


def test_a_shorter_answer_of_a_refused_one_ends_sooner(tmp_path: Path) -> None:
    one = {"limits.concurrency.max_in_flight": "1", "limits.concurrency.max_waiting": "5"}
    lines = [served(0.0), refused(0.1, max_tokens=5), refused(0.2)]
    assert waits(simulated(tmp_path, lines, one)) == [0.0, 2.4, 3.3]  # 0.5 s, and 5 x 0.1 s


def test_rates_count_by_what_the_log_tells_apart(tmp_path: Path) -> None:
    lines = [served(n, address=who) for n, who in enumerate("aabbba")]
    rate = {"limits.rate_limit": "[{requests: 2, window: 4s}]"}
    result = simulated(tmp_path, lines, rate | {"limits.concurrency.max_in_flight": "9"})
    assert codes(result) == ["", "", "", "", "rate_limited", ""]


@pytest.mark.parametrize("key", ["client", "client_ip", "api_key", "user", "header:X-Team"])
def test_each_rule_counts_by_its_own_key(tmp_path: Path, key: str) -> None:
    """Of four requests the second is another client by everything but what the rule counts by."""
    one = {"address": "a", "key": "k", "user": "u", "headers": {"x-team": "t"}}
    other = {"address": "b", "key": "l", "user": "v", "headers": {"x-team": "s"}}
    kept = {"client": "key", "client_ip": "address", "api_key": "key", "user": "user"}
    field = kept.get(key, "headers")
    both = [one, other | {field: one[field]}, other, one]
    lines = [served(float(n), tenant="people", **who) for n, who in enumerate(both)]
    rule = {"limits.rate_limit": f"[{{key: '{key}', requests: 2, window: 60s}}]"}
    assert codes(simulated(tmp_path, lines, rule)) == ["", "", "", "rate_limited"]


def test_a_header_that_nobody_counted_by_is_not_known(tmp_path: Path) -> None:
    rule = {"limits.rate_limit": "[{name: teams, key: 'header:X-Team', requests: 1}]"}
    result = simulated(tmp_path, [served(0.0), served(1.0)], rule)
    assert codes(result) == ["", ""]
    assert result.warnings == ["rate limit teams: the header X-Team is not in the log: none counts"]


def test_tokens_of_a_tenant_are_charged(tmp_path: Path) -> None:
    lines = [served(3.0 * n, tenant="people", key="k") for n in range(4)]
    tenants = {"clients.tenants": "{people: {tokens: 100, window: 60s}}"}  # 50 each
    assert codes(simulated(tmp_path, lines, tenants)) == ["", "", *["tokens_exhausted"] * 2]


def test_one_on_trial_only_counts(tmp_path: Path) -> None:
    rate = {"limits.rate_limit": "[{requests: 2, window: 60s, mode: dry_run}]"}
    result = simulated(tmp_path, [served(float(n)) for n in range(5)], rate)
    assert codes(result) == [""] * 5
    assert result.would_deny == Counter({"rate_limit:per-client": 3})


def test_what_was_refused_for_its_own_sake_is_still(tmp_path: Path) -> None:
    """Nobody was asked about it, so it neither counts nor takes a slot."""
    wrong = refused(0.0, "invalid_request", 400, judged=None, waited=None)
    result = simulated(tmp_path, [wrong, served(0.1)], {"limits.concurrency.max_in_flight": "1"})
    assert codes(result) == ["invalid_request", ""]


def test_one_that_turned_out_wrong_holds_its_slot_and_does_not_count(tmp_path: Path) -> None:
    wrong = served(0.0, status=400, code="context_exceeded", ttft=None, held=1.0, lasted=1.0)
    rules = {
        "limits.concurrency.max_in_flight": "1",
        "limits.concurrency.max_waiting": "1",
        "limits.rate_limit": "[{requests: 1, window: 60s}]",
    }
    late = simulated(tmp_path, [wrong, served(1.5)], rules)
    assert codes(late) == ["context_exceeded", ""]
    early = simulated(tmp_path, [wrong, served(0.5)], rules)
    assert codes(early) == ["context_exceeded", "rate_limited"]


@pytest.mark.parametrize(
    ("code", "status", "counts"),
    [
        ("context_exceeded", 200, False),
        ("request_timeout", 408, True),
        ("model_not_found", 404, False),
    ],
)
def test_whether_it_counts_is_said_by_its_code(
    tmp_path: Path, code: str, status: int, counts: bool
) -> None:
    """The status of an answer that was streamed is 200."""
    wrong = served(0.0, status=status, code=code, ttft=None, held=1.0, lasted=1.0)
    rate = {"limits.rate_limit": "[{requests: 1, window: 60s}]"}
    result = simulated(tmp_path, [wrong, served(1.5)], rate)
    assert codes(result) == [code, "rate_limited" if counts else ""]


def test_who_left_leaves_as_long_after_it_came(tmp_path: Path) -> None:
    one = {"limits.concurrency.max_in_flight": "1", "limits.concurrency.max_waiting": "5"}
    left = [
        served(0.1, status=499, lasted=1.0),  # while it waits
        served(0.2, status=499, lasted=4.0),  # in the middle of its answer
    ]
    result = simulated(tmp_path, [served(0.0), *left, served(0.3)], one)
    assert codes(result) == ["", LEFT, LEFT, ""]
    assert waits(result) == [0.0, None, 2.3, 3.9]


def test_longer_prompts_and_answers_than_are_allowed(tmp_path: Path) -> None:
    bounds = {
        "limits.tokens.max_prompt": "100", "limits.tokens.max_output": "10",
        "limits.concurrency.max_in_flight": "1", "limits.concurrency.max_waiting": "5",
    }  # fmt: skip
    result = simulated(tmp_path, [served(0.0), served(0.1, prompt=101), served(0.2)], bounds)
    assert codes(result) == ["", "context_exceeded", ""]
    assert waits(result) == [0.0, 1.4, 1.3]  # half of its answer is cut


def test_a_tenant_may_have_less_room_than_others(tmp_path: Path) -> None:
    bounds = {
        "clients.tenants": "{people: {max_context: 40}}",  # served() has 30 and 20 tokens
        "limits.concurrency.max_in_flight": "1", "limits.concurrency.max_waiting": "5",
    }  # fmt: skip
    lines = [
        served(0.0, tenant="people"), served(0.1, tenant="people", prompt=40),
        served(0.2, tenant="people", choices=2, prompt=60, completion=40),
        served(0.3, tenant="people", prompt=39),
        served(0.4, tenant="people", prompt=40, want="embedding", completion=0),
    ]  # fmt: skip
    result = simulated(tmp_path, lines, bounds)
    assert codes(result) == ["", "context_exceeded", "", "", ""]
    assert waits(result) == [0.0, 1.4, 1.3, 2.7, 3.2]  # of 20 tokens 10, twice 10, and 1


def test_models_that_a_tenant_may_use_are_the_new_ones(tmp_path: Path) -> None:
    name = "Org/Qwen2.5-Coder-32B-Instruct-4bit"
    lines = [served(3.0 * n, model=name, tenant=who) for n, who in enumerate(["people", "agents"])]

    def may_use(models: str) -> list[str]:
        rules = {
            "clients.tenants": f"{{people: {{models: [{models}], requests: 1}}}}",
            "models.models": f"{{{name}: {{aliases: [coder]}}}}",
        }
        return codes(simulated(tmp_path, lines, rules))

    for models in ("", name, "'qwen2.5-coder:*'", "other, coder", "'org/*'"):
        assert may_use(models) == ["", ""]
    assert may_use("other") == ["forbidden", ""]


def test_classes_and_their_ceilings_are_the_new_ones(tmp_path: Path) -> None:
    def of(klass: str, at: float) -> Request:
        return served(at, tenant="agents", wished=klass, klass=klass, address="b")

    lines = [served(0.0), of("low", 0.1), of("low", 0.2), of("high", 0.3)]
    one = {"limits.concurrency.max_in_flight": "1", "limits.concurrency.max_waiting": "5"}
    result = simulated(tmp_path, lines, one)
    assert waits(result) == [0.0, 4.9, 7.3, 2.2]
    low = simulated(tmp_path, lines, one | {"clients.tenants": "{agents: {max_priority: low}}"})
    assert waits(low) == [0.0, 2.4, 4.8, 7.2]
    assert [one.klass for one in low.outcomes] == ["medium", "low", "low", "low"]


class TestModels:
    """In memory, on their way, and gone."""

    def test_a_load_takes_as_long_as_it_took_and_is_one_for_all(self, tmp_path: Path) -> None:
        lines = [
            served(0.0, model="other", load=3.0, ttft=3.5, held=5.5, lasted=5.5),
            served(1.0, model="other", load=2.0, ttft=2.5, held=4.5, lasted=4.5),
            served(9.0, model="other"),
        ]
        result = simulated(tmp_path, lines, BOTH, models=TWO)
        assert [one.loaded for one in result.outcomes] == [True, True, False]
        assert [one.ttft for one in result.outcomes] == pytest.approx([3.5, 2.5, 0.5])
        assert (result.loads, result.evictions) == (1, 0)

    def test_with_room_for_one_they_take_turns(self, tmp_path: Path) -> None:
        lines = [served(10.0 * n, model=name) for n, name in enumerate(["tiny", "other", "tiny"])]
        result = simulated(tmp_path, lines, BOTH | {"models.max_loaded": "1"}, models=TWO)
        assert (result.loads, result.evictions) == (2, 2)
        assert [one.ttft for one in result.outcomes] == pytest.approx([0.5, 3.5, 4.5])
        assert result.warnings == []

    def test_one_in_use_is_waited_for(self, tmp_path: Path) -> None:
        lines = [served(0.0), served(0.5, model="other")]
        result = simulated(tmp_path, lines, BOTH | {"models.max_loaded": "1"}, models=TWO)
        assert [one.ttft for one in result.outcomes] == pytest.approx([0.5, 2.0 + 3.0 + 0.5])

    def test_a_recent_one_is_spared(self, tmp_path: Path) -> None:
        rules = BOTH | {"models.max_loaded": "1", "memory.eviction.protect_recent": "20s"}
        result = simulated(tmp_path, [served(0.0), served(5.0, model="other")], rules, models=TWO)
        assert [one.ttft for one in result.outcomes] == pytest.approx([0.5, 17.5 + 3.0 + 0.5])

    def test_an_idle_one_goes_and_is_no_eviction(self, tmp_path: Path) -> None:
        rules = BOTH | {"models.defaults.ttl": "5s"}
        result = simulated(tmp_path, [served(0.0), served(8.0)], rules, models=TWO)
        assert (result.loads, result.evictions) == (1, 0)
        keep = [served(0.0, keep_alive=-1.0), served(8.0)]
        assert simulated(tmp_path, keep, rules, models=TWO).loads == 0
        preload = rules | {"models.preload": "[tiny]"}
        assert simulated(tmp_path, [served(0.0), served(8.0)], preload, models=TWO).loads == 0

    def test_a_tenant_may_not_keep_it_for_longer_or_shorter(self, tmp_path: Path) -> None:
        rules = BOTH | {"models.defaults.ttl": "10s"}
        longer = [served(0.0, tenant="people", keep_alive=-1.0), served(20.0)]
        shorter = [served(0.0, tenant="people", keep_alive=0.0), served(8.0)]
        for lines, limits, loads in (
            (longer, "max_keep_alive: 1h", 0),
            (longer, "max_keep_alive: 12s", 1),
            (shorter, "unload: true", 1),
            (shorter, "unload: false", 0),
        ):
            tenants = {"clients.tenants": f"{{people: {{{limits}}}}}"}
            assert simulated(tmp_path, lines, rules | tenants, models=TWO).loads == loads

    def test_memory_bounds_them_too(self, tmp_path: Path) -> None:
        room = 2 * 10**9
        models = {"tiny": Known(bytes=10**9, seconds=4.0, loaded=True)}
        models |= {"other": Known(bytes=9 * 10**8, seconds=3.0), "vast": Known(bytes=10**10)}
        lines = [served(0.0), served(9.0, model="other"), served(19.0, model="vast")]
        rules = BOTH | {"memory.reserve.system": "100MB"}
        result = simulated(tmp_path, lines, rules, models=models, memory=room)
        assert codes(result) == ["", "", "insufficient_memory"]
        assert result.evictions == 1

    def test_nobody_waits_longer_for_room_than_for_a_load(self, tmp_path: Path) -> None:
        rules = BOTH | {"models.max_loaded": "1", "timeouts.model_load": "1s"}
        lines = [served(0.0, held=9.0, lasted=9.0), served(0.5, model="other")]
        result = simulated(tmp_path, lines, rules, models=TWO)
        assert codes(result) == ["", "insufficient_memory"]
        refuses = BOTH | {"models.max_loaded": "1", "memory.reserve.when_full": "refuse"}
        assert codes(simulated(tmp_path, lines, refuses, models=TWO)) == ["", "models_busy"]

    def test_who_found_no_room_is_judged_anew(self, tmp_path: Path) -> None:
        failed = refused(1.0, "models_busy", 503, model="other", waited=0.0, held=0.5, lasted=0.5)
        lines = [served(0.0, held=9.0, lasted=9.0), failed, served(20.0, model="other")]
        assert codes(simulated(tmp_path, lines, BOTH, models=TWO)) == ["", "", ""]
        still = BOTH | {"models.max_loaded": "1", "memory.reserve.when_full": "refuse"}
        assert codes(simulated(tmp_path, lines, still, models=TWO)) == ["", "models_busy", ""]

    def test_what_the_log_does_not_know_is_said(self, tmp_path: Path) -> None:
        lines = [served(0.0), refused(5.0, model="new")]
        result = simulated(tmp_path, lines, BOTH)
        assert codes(result) == ["", ""]
        assert result.warnings == [
            "new: no load of it is in the log; it is taken to load at once",
            "new: none of its requests was served; its times are those of all models",
        ]

    def test_loads_take_turns(self, tmp_path: Path) -> None:
        loads = [Loaded(at=ZERO, model=name, seconds=2.0) for name in "xy"]
        lines = [served(0.0), served(5.0, model="x", status=200), served(5.0, model="y")]
        lines = [refused(one.at - ZERO, model=one.model) for one in lines[1:]] + lines[:1]
        result = simulated(tmp_path, [*loads, *lines], BOTH)
        assert [one.ttft for one in result.outcomes] == pytest.approx([0.5, 2.5, 4.5])
        both = simulated(tmp_path, [*loads, *lines], BOTH | {"models.load.max_parallel": "2"})
        assert [one.ttft for one in both.outcomes] == pytest.approx([0.5, 2.5, 2.5])


def test_slots_follow_latencies_where_policy_says_so(tmp_path: Path) -> None:
    """Each answer takes half a second to its first token: with that aimed for, all have slots;
    with less, soon one at a time.
    """
    lines = [served(n * 0.6) for n in range(300)]
    rules = {
        "limits.rate_limit": "[]",
        "limits.concurrency.max_in_flight": "8",
        "limits.concurrency.max_waiting": "2",
        "limits.adaptive.enabled": "true",
        "limits.adaptive.max": "8",
        "limits.adaptive.interval": "5s",
        "limits.adaptive.ttft": "600ms",
    }
    assert Counter(codes(simulated(tmp_path, lines, rules))) == {"": 300}
    slow = Counter(codes(simulated(tmp_path, lines, rules | {"limits.adaptive.ttft": "400ms"})))
    assert slow["queue_full"] + slow["queue_timeout"] + slow["shed"] > 150
    gap = rules | {"limits.adaptive.token_gap": "50ms"}  # it is 100 ms
    assert Counter(codes(simulated(tmp_path, lines, gap)))[""] < 150


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_long_log_takes_little_time(tmp_path: Path, count: int) -> None:
    """Of a core; 100,000 requests well under a minute."""
    house = House(slots=5, max_waiting=20, requests=100_000, gap=0.4)
    file = write(tmp_path / "log", day(house, 1, count))
    began = time.process_time()
    result = World(read([file]), house.policies()).run()
    assert len(result.outcomes) == count
    assert time.process_time() - began < count * 45e-5
