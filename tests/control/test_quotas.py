"""Tokens that tenants have left, against a sum of everything that was charged."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from mlxd.control import quotas as module
from mlxd.control.quotas import DAY_S, Day, Quotas, quota_rules
from mlxd.control.spent import Spent
from mlxd.core.caller import Caller
from mlxd.core.errors import TokensExhausted
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

NOON = 20_000 * DAY_S + 12 * 3600.0
HOME = Caller("10.0.0.7")
AGENT = Caller("10.0.0.7", "k1", "Agents")
OTHER_AGENT = Caller("10.0.0.8", "k2", "agents")
DAILY = "{daily_tokens: 100}"
BOTH = "{tokens: 100, window: 60s, daily_tokens: 1000}"


class Files:
    def __init__(self, folder: Any) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, **tenants: str) -> PolicySet:
        self._count += 1
        text = "".join(f"  {name}: {limits}\n" for name, limits in tenants.items())
        files = {"clients": f"tenants:\n{text}" if text else "tenants: {}\n"}
        return load(write_policies(self._folder / str(self._count), files))


@pytest.fixture
def files(tmp_path: Any) -> Files:
    return Files(tmp_path)


def refusal(
    quotas: Quotas, caller: Caller, policies: PolicySet, now: float = 0.0, wall: float = NOON
) -> TokensExhausted | None:
    try:
        quotas.check(caller, policies, now, wall)
    except TokensExhausted as error:
        return error
    return None


def test_who_has_used_all_is_refused_with_the_numbers(files: Files) -> None:
    policies, quotas = files(agents="{tokens: 100, window: 60s}"), Quotas()
    quotas.charge(AGENT, policies, 60, 10.0, NOON)
    assert refusal(quotas, AGENT, policies, 10.0) is None
    quotas.charge(OTHER_AGENT, policies, 70, 20.0, NOON)  # all keys of a tenant are one client
    error = refusal(quotas, AGENT, policies, 22.5, NOON + 0.5)
    assert error is not None
    assert error.message == "Token quota used up. 130 of 100 tokens per 60 seconds"
    assert error.retry_after == 47.5
    assert error.would_pass == "the same request in 48 s"
    assert error.policy is not None
    assert error.policy.key == "clients.tenants.agents.tokens"
    assert error.policy.place.endswith("clients.yaml:3")
    assert error.numbers == {
        "rule": "tenant:agents:tokens",
        "quota": 100,
        "used": 130,
        "window_seconds": 60.0,
        "resets_at": "2024-10-04T12:00:48Z",
    }
    assert refusal(quotas, AGENT, policies, 70.0) is None


def test_a_day_ends_at_midnight_utc(files: Files) -> None:
    policies, quotas = files(agents=DAILY), Quotas()
    quotas.charge(AGENT, policies, 100, 0.0, NOON)
    error = refusal(quotas, AGENT, policies, 1e6, NOON + 1)
    assert error is not None
    assert error.message == "Token quota used up. 100 of 100 tokens per day (UTC)"
    assert error.retry_after == 12 * 3600 - 1
    assert error.numbers["resets_at"] == "2024-10-05T00:00:00Z"
    assert error.policy is not None
    assert error.policy.key == "clients.tenants.agents.daily_tokens"
    midnight = math.ceil(NOON / DAY_S) * DAY_S
    assert refusal(quotas, AGENT, policies, 1e6, midnight - 0.001) is not None
    assert refusal(quotas, AGENT, policies, 1e6, midnight) is None


def test_the_longer_of_two_waits_is_told(files: Files) -> None:
    policies, quotas = files(agents=BOTH), Quotas()
    quotas.charge(AGENT, policies, 1000, 0.0, NOON)
    error = refusal(quotas, AGENT, policies, 1.0)
    assert error is not None
    assert error.retry_after == 12 * 3600
    late = math.ceil(NOON / DAY_S) * DAY_S - 5.0
    error = refusal(quotas, AGENT, policies, 1.0, late)
    assert error is not None
    assert error.numbers["rule"] == "tenant:agents:tokens"
    assert error.retry_after == 59.0


def test_a_request_under_way_may_take_more_than_is_left(files: Files) -> None:
    policies, quotas = files(agents=DAILY), Quotas()
    quotas.charge(AGENT, policies, 99, 0.0, NOON)
    for _ in range(2):
        assert refusal(quotas, AGENT, policies) is None  # both are let in
    for _ in range(2):
        quotas.charge(AGENT, policies, 5000, 0.0, NOON)
    error = refusal(quotas, AGENT, policies)
    assert error is not None
    assert error.numbers["used"] == 10_099


def test_each_address_without_a_key_has_a_quota_of_its_own(files: Files) -> None:
    policies, quotas = files(anonymous=BOTH), Quotas()
    quotas.charge(HOME, policies, 1000, 0.0, NOON)
    assert refusal(quotas, HOME, policies) is not None
    assert refusal(quotas, HOME, policies, 61.0) is not None
    assert refusal(quotas, Caller("10.0.0.8"), policies) is None
    assert refusal(quotas, AGENT, policies) is None


def test_who_has_no_quota_is_never_refused_and_still_counted(files: Files) -> None:
    policies, quotas = files(), Quotas()
    for caller in (HOME, AGENT, Caller("10.0.0.9")):
        quotas.charge(caller, policies, 10**9, 0.0, NOON)
        assert refusal(quotas, caller, policies) is None
        assert quotas.remaining(caller, policies, 0.0, NOON) == []
    uses = [(use.tenant, use.today, use.recently) for use in quotas.uses(policies, 0.0, NOON)]
    assert uses == [("agents", 10**9, 10**9), ("anonymous", 2 * 10**9, 2 * 10**9)]
    assert quotas.day(0.0, NOON).addresses == {}
    tomorrow = quotas.uses(policies, 1e6, NOON + DAY_S)
    assert [(use.tenant, use.today, use.recently) for use in tomorrow] == [
        ("agents", 0, 0),
        ("anonymous", 0, 0),
    ]


def test_a_limit_that_comes_later_counts_what_its_tenant_has_used(files: Files) -> None:
    before, after = files(), files(AGENTS=DAILY)
    quotas = Quotas()
    quotas.charge(AGENT, before, 100, 0.0, NOON)
    assert refusal(quotas, AGENT, before) is None
    assert refusal(quotas, AGENT, after) is not None
    assert [use.tenant for use in quotas.uses(after, 0.0, NOON)] == ["AGENTS", "anonymous"]


def test_what_is_left_is_told_for_headers(files: Files) -> None:
    policies, quotas = files(agents=BOTH), Quotas()
    states = quotas.remaining(AGENT, policies, 0.0, NOON)
    assert [(one.remaining, one.reset) for one in states] == [(100, 0.0), (1000, 0.0)]
    quotas.charge(AGENT, policies, 30, 0.0, NOON)
    quotas.charge(AGENT, policies, 90, 20.0, NOON)
    states = quotas.remaining(AGENT, policies, 30.0, NOON)
    assert [(one.name, one.requests, one.window, one.unit) for one in states] == [
        ("tenant:agents:tokens", 100, 60.0, "tokens"),
        ("tenant:agents:daily_tokens", 1000, 86_400, "tokens"),
    ]
    # once the first 30 have left the window, 90 of 100 are used
    assert [(one.remaining, one.reset) for one in states] == [(0, 30.0), (880, 12 * 3600)]
    assert quotas.remaining(AGENT, policies, 60.0, NOON)[0].reset == 20.0


def test_a_clock_that_is_set_back_begins_no_new_day(files: Files) -> None:
    policies, quotas = files(agents=DAILY), Quotas()
    quotas.charge(AGENT, policies, 100, 0.0, NOON)
    back = refusal(quotas, AGENT, policies, 0.0, NOON - DAY_S)
    assert back is not None
    assert back.retry_after == 12 * 3600
    assert refusal(quotas, AGENT, policies, 60.0, NOON) is not None, "it was wrong for a moment"
    assert refusal(quotas, AGENT, policies, 60.0, NOON + DAY_S) is None


def test_a_clock_that_was_ahead_is_believed_when_it_has_been_right_for_an_hour(
    files: Files,
) -> None:
    policies, quotas = files(agents=DAILY), Quotas()
    quotas.charge(AGENT, policies, 100, 0.0, NOON + 50 * DAY_S)
    assert refusal(quotas, AGENT, policies, 10.0, NOON) is not None
    assert refusal(quotas, AGENT, policies, 3609.0, NOON + 3600) is not None
    assert quotas.day(3609.0, NOON + 3600).number == 20_050
    assert quotas.day(3610.0, NOON + 3600).number == 20_000
    assert refusal(quotas, AGENT, policies, 3610.0, NOON + 3600) is not None
    assert refusal(quotas, AGENT, policies, 3610.0, NOON + DAY_S) is None


def test_the_day_survives_and_yesterday_does_not(files: Files) -> None:
    policies, quotas = files(agents=DAILY, anonymous=DAILY), Quotas()
    quotas.charge(AGENT, policies, 100, 0.0, NOON)
    quotas.charge(HOME, policies, 100, 0.0, NOON)
    day = quotas.day(0.0, NOON)
    assert day == Day(20_000, {"agents": 100, "anonymous": 100}, {"10.0.0.7": 100})
    for caller in (AGENT, HOME):
        assert refusal(Quotas(day), caller, policies) is not None
        assert refusal(Quotas(day), caller, policies, 0.0, NOON + DAY_S) is None
    assert Quotas(day).day(0.0, NOON + DAY_S) == Day(20_001)


def test_only_what_changes_the_day_is_worth_a_write(files: Files) -> None:
    policies, quotas = files(agents=DAILY), Quotas()
    quotas.charge(AGENT, policies, 0, 0.0, NOON)
    refusal(quotas, AGENT, policies)
    assert quotas.changes == 0
    quotas.charge(AGENT, policies, 1, 0.0, NOON)
    assert quotas.changes == 1
    refusal(quotas, AGENT, policies, 0.0, NOON + DAY_S)
    assert quotas.changes == 2


def test_of_addresses_the_longest_silent_is_forgotten(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ADDRESSES", 3)
    policies, quotas = files(anonymous=BOTH), Quotas()
    callers = [Caller(f"10.0.0.{number}") for number in range(4)]
    for caller in (*callers[:3], callers[0], callers[3]):
        quotas.charge(caller, policies, 1000, 0.0, NOON)
    refused = [refusal(quotas, caller, policies) is not None for caller in callers]
    assert refused == [True, False, True, True]
    assert len(quotas.day(0.0, NOON).addresses) == 3


def test_addresses_that_are_silent_for_a_window_take_no_memory(files: Files) -> None:
    policies, quotas = files(anonymous="{tokens: 5, window: 60s}"), Quotas()
    for number in range(1000):
        quotas.charge(Caller(f"address {number}"), policies, 1, float(number), NOON)
        assert len(quotas._addresses_recent) <= 61


def test_the_names_of_quotas(files: Files) -> None:
    policies = files(agents=BOTH, others=DAILY, none="{requests: 1}")
    assert quota_rules(policies) == [
        "tenant:agents:tokens",
        "tenant:agents:daily_tokens",
        "tenant:others:daily_tokens",
    ]


def test_a_busy_client_takes_little_memory() -> None:
    spent = Spent()
    for number in range(100_000):
        spent.add(1, 60.0, number / 1000)
    assert len(spent._times) <= 1001
    assert spent.used(60.0, 99.999) == pytest.approx(60_000, rel=0.002)


class Naive:
    """Every charge, kept for ever; those of one thousandth of the window leave with its last."""

    def __init__(self) -> None:
        self.charges: list[tuple[float, int]] = []

    def used(self, window: float, now: float) -> int:
        return sum(tokens for at, tokens in self._leaving(window) if at > now - window)

    def wait(self, quota: int, window: float, now: float) -> float:
        """Until less than the quota is used; only when something leaves can that be."""
        moments = [now, *sorted(at + window for at, _ in self._leaving(window))]
        return next(at - now for at in moments if at >= now and self.used(window, at) < quota)

    def _leaving(self, window: float) -> Iterator[tuple[float, int]]:
        last: dict[float, float] = {}
        for at, _ in self.charges:
            last[at // (window / 1000)] = at
        for at, tokens in self.charges:
            yield last[at // (window / 1000)], tokens


@pytest.mark.parametrize("seed", range(40))
def test_it_decides_as_a_sum_of_everything_does(files: Files, seed: int) -> None:
    draw = random.Random(seed)
    quota, daily = draw.randint(1, 500), draw.randint(200, 3000)
    window = draw.choice([1, 60, 3600])
    limits = f"{{tokens: {quota}, window: {window}s, daily_tokens: {daily}}}"
    policies, quotas = files(agents=limits, anonymous=limits), Quotas()
    callers = [HOME, Caller("10.0.0.8"), AGENT]
    recent = {caller.name: Naive() for caller in callers}
    today: dict[tuple[str, int], int] = {}
    now = 0.0
    for _ in range(300):
        now += draw.choice([0.0, window / 4096, window / 16, window / 4, window * 2, 4096.0])
        wall, caller = NOON + now, draw.choice(callers)
        day = int(wall // DAY_S)
        waits = [recent[caller.name].wait(quota, window, now)]
        if today.get((caller.name, day), 0) >= daily:
            waits.append((day + 1) * DAY_S - wall)
        error = refusal(quotas, caller, policies, now, wall)
        assert (error.retry_after if error else 0.0) == max(waits)
        states = quotas.remaining(caller, policies, now, wall)
        used = [recent[caller.name].used(window, now), today.get((caller.name, day), 0)]
        assert [one.remaining for one in states] == [
            max(0, quota - used[0]),
            max(0, daily - used[1]),
        ]
        if error is None:
            tokens = draw.choice([0, 1, draw.randint(1, 2 * quota)])
            quotas.charge(caller, policies, tokens, now, wall)
            if tokens:
                recent[caller.name].charges.append((now, tokens))
            today[caller.name, day] = today.get((caller.name, day), 0) + tokens
