"""Which rule counts whom, what it refuses, and what it says."""

from __future__ import annotations

import gc
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pytest

from mlxd.control import rates as rates_module
from mlxd.control.applicant import Applicant
from mlxd.control.rates import Rates, identity, rate_rules
from mlxd.core.caller import Caller
from mlxd.core.errors import RateLimited
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies

HOME = Caller("10.0.0.7")
AGENT = Caller("10.0.0.7", "k1", "Agents", {"x-team": "red"})
OTHER_AGENT = Caller("10.0.0.8", "k2", "agents", {"x-team": "blue"})


class Files:
    """Policy sets of a test, each of a folder of its own."""

    def __init__(self, folder: Any) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, limits: str = "rate_limit: []\n", **files: str) -> PolicySet:
        self._count += 1
        return load(write_policies(self._folder / str(self._count), {"limits": limits, **files}))


@pytest.fixture
def files(tmp_path: Any) -> Files:
    return Files(tmp_path)


def ask(
    rates: Rates,
    caller: Caller,
    policies: PolicySet,
    now: float = 0.0,
    *,
    user: str = "",
    told: list[str] | None = None,
) -> RateLimited | None:
    """One request: None, or what refuses it."""
    applicant = Applicant(caller, policies, "m", user=user)
    try:
        rates.take(applicant, now, (told if told is not None else []).append)
    except RateLimited as error:
        return error
    return None


@pytest.mark.parametrize(
    ("key", "caller", "user", "counted"),
    [
        ("client", HOME, "", "10.0.0.7"),
        ("client", AGENT, "", "key k1"),
        ("client_ip", AGENT, "", "10.0.0.7"),
        ("api_key", AGENT, "", "k1"),
        ("api_key", HOME, "", ""),
        ("user", HOME, "ann", "ann"),
        ("user", AGENT, "", ""),
        ("header:X-Team", AGENT, "", "red"),
        ("header:X-Team", HOME, "", ""),
        ("tenant:agents", AGENT, "", "agents"),
        ("tenant:anonymous", HOME, "", "10.0.0.7"),
    ],
)
def test_what_each_key_counts_by(key: str, caller: Caller, user: str, counted: str) -> None:
    assert identity(key, caller, user) == counted


def test_a_long_name_takes_little_memory_and_is_still_told_from_others() -> None:
    first, second = (identity("user", HOME, "x" * 100_000 + end) for end in "ab")
    assert len(first) == len(second) == 32
    assert first != second
    assert len(identity("header:x", Caller("a", headers={"x": "\udcff" * 100}), "")) == 32


def test_a_key_cannot_pass_for_an_address() -> None:
    assert identity("client", Caller("10.0.0.7"), "") != identity(
        "client", Caller("10.9.9.9", "10.0.0.7"), ""
    )


@pytest.mark.parametrize("key", ["api_key", "user", "header:x-team"])
def test_who_has_no_such_thing_is_not_counted_by_that_rule(files: Files, key: str) -> None:
    policies = files(f"rate_limit: [{{key: '{key}', requests: 1}}]\n")
    rates = Rates()
    assert [ask(rates, HOME, policies) for _ in range(5)] == [None] * 5
    assert rates.states(HOME, policies, 0.0) == []
    assert ask(rates, AGENT, policies, user="ann") is None
    assert ask(rates, AGENT, policies, user="ann") is not None
    assert len(rates.states(AGENT, policies, 0.0, "ann")) == 1


def test_a_refusal_says_all_but_who(files: Files) -> None:
    policies = files("rate_limit:\n  - {name: team, key: 'header:x-team', requests: 2}\n")
    rates = Rates()
    ask(rates, AGENT, policies, 0.0)
    ask(rates, AGENT, policies, 1.0)
    error = ask(rates, AGENT, policies, 2.5)
    assert error is not None
    assert error.message == "Rate limit exceeded. Max 2 requests per 60 seconds"
    assert error.retry_after == 57.5
    assert error.would_pass == "the same request in 58 s"
    assert error.policy is not None
    assert error.policy.key == "limits.rate_limit[0].requests"
    assert error.policy.place.endswith("limits.yaml:3")
    assert error.numbers == {
        "rule": "rate_limit:team",
        "limit": 2,
        "window_seconds": 60.0,
        "used": 2,
        "counted_by": "header:x-team",
        "algorithm": "sliding_window",
    }
    assert "red" not in error.explained() + repr(error.numbers)


def test_a_spaced_rule_says_its_spacing(files: Files) -> None:
    policies = files("rate_limit: [{algorithm: gcra, requests: 30}]\n")
    rates = Rates()
    ask(rates, HOME, policies)
    error = ask(rates, HOME, policies, 0.5)
    assert error is not None
    assert error.message == (
        "Rate limit exceeded. Max 30 requests per 60 seconds, one every 2 seconds"
    )
    assert error.retry_after == 1.5


def test_a_tenants_requests_are_one_more_rule(files: Files) -> None:
    clients = "tenants:\n  AGENTS: {requests: 2, window: 1h}\n  anonymous: {requests: 1}\n"
    policies = files(clients=clients)
    rates = Rates()
    assert rate_rules(policies) == ["tenant:AGENTS", "tenant:anonymous"]
    assert ask(rates, AGENT, policies) is None
    assert ask(rates, OTHER_AGENT, policies) is None  # all keys of a tenant are one client
    error = ask(rates, AGENT, policies, 60.0)
    assert error is not None
    assert error.message == "Rate limit exceeded. Max 2 requests per 3600 seconds"
    assert error.retry_after == 3540.0
    assert error.policy is not None
    assert error.policy.key == "clients.tenants.AGENTS.requests"
    assert (error.numbers["rule"], error.numbers["counted_by"]) == ("tenant:AGENTS", "tenant")
    assert ask(rates, Caller("10.0.0.9"), policies) is None  # each address for itself
    assert ask(rates, HOME, policies) is None
    assert ask(rates, HOME, policies) is not None
    assert [ask(rates, Caller("h", "k9", "unlisted"), policies) for _ in range(3)] == [None] * 3


def test_what_a_tenant_has_left_is_told_beside_the_rules(files: Files) -> None:
    policies = files(
        "rate_limit: [{requests: 5}, {name: trial, mode: dry_run}]\n",
        clients="tenants: {agents: {requests: 2}}\n",
    )
    rates = Rates()
    ask(rates, AGENT, policies)
    states = rates.states(AGENT, policies, 10.0)
    assert [(one.name, one.requests, one.remaining, one.reset) for one in states] == [
        ("per-client", 5, 4, 50.0),
        ("tenant:agents", 2, 1, 50.0),
    ]
    assert [one.name for one in rates.states(HOME, policies, 10.0)] == ["per-client"]


def test_what_the_last_rule_refuses_counts_in_none(files: Files) -> None:
    policies = files(
        "rate_limit: [{requests: 9}, {name: b, key: client_ip, algorithm: token_bucket}]\n",
        clients="tenants: {agents: {requests: 1}}\n",
    )
    rates = Rates()
    ask(rates, AGENT, policies)
    for _ in range(50):
        assert ask(rates, AGENT, policies) is not None
    assert [one.remaining for one in rates.states(AGENT, policies, 0.0)] == [8, 29, 0]


def test_of_rules_that_refuse_the_one_that_does_so_longest_is_told(files: Files) -> None:
    rules = ("{name: a, requests: 2, window: 10s}", "{name: b, requests: 2, window: 60s}")
    for order in (rules, rules[::-1]):
        policies = files(f"rate_limit: [{', '.join(order)}, {{name: c, requests: 2}}]\n")
        rates = Rates()
        for _ in range(2):
            assert ask(rates, HOME, policies) is None
        error = ask(rates, HOME, policies, 4.0)
        assert error is not None
        assert (error.numbers["rule"], error.retry_after) == ("rate_limit:b", 56.0)
        assert ask(rates, HOME, policies, 59.0) is not None
        assert ask(rates, HOME, policies, 60.0) is None


def test_rules_are_made_once_for_each_generation_and_go_with_it(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[PolicySet]()

    def rules(policies: PolicySet) -> tuple[()]:
        made.append(policies)
        return ()

    monkeypatch.setattr(rates_module, "_rules", rules)
    rates = Rates()
    for _ in range(2):
        policies = files(clients="tenants: {agents: {requests: 2}, anonymous: {requests: 2}}\n")
        for number in range(20):
            for name in ("", "agents", "AGENTS", f"unlisted {number}"):
                rates.states(Caller(f"10.0.0.{number}", name, name), policies, 0.0)
    assert len(made) == 2 * 3
    made.clear()
    policies = files()
    gc.collect()
    assert len(rates._known) == 0


def test_a_refund_is_made_everywhere_and_once(files: Files) -> None:
    policies = files("rate_limit: [{requests: 9}]\n", clients="tenants: {agents: {requests: 5}}\n")
    rates = Rates()
    applicant = Applicant(AGENT, policies, "m")
    first, _ = (rates.take(applicant, 0.0, list[str]().append) for _ in range(2))
    first.refund()
    first.refund()
    assert [one.remaining for one in rates.states(AGENT, policies, 0.0)] == [8, 4]


def test_what_is_not_rated_counts_nowhere(files: Files) -> None:
    policies = files("rate_limit: [{requests: 1}]\n")
    rates = Rates()
    for _ in range(3):
        rates.take(Applicant(HOME, policies, "m", rated=False), 0.0, list[str]().append)
    assert ask(rates, HOME, policies) is None


def test_a_rule_on_trial_tells_and_one_that_is_off_does_not(files: Files) -> None:
    policies = files(
        "rate_limit:\n"
        "  - {name: trial, requests: 1, mode: dry_run}\n"
        "  - {name: none, requests: 1, mode: 'off'}\n"
    )
    rates, told = Rates(), list[str]()
    for _ in range(3):
        assert ask(rates, HOME, policies, told=told) is None
    assert told == ["rate_limit:trial"] * 2
    assert rate_rules(policies) == ["rate_limit:trial"]


def test_only_the_longest_silent_are_forgotten(files: Files) -> None:
    policies = files("rate_limit: [{requests: 1, max_keys: 3}]\n")
    rates = Rates()
    callers = [Caller(f"10.0.0.{number}") for number in range(4)]
    for now, caller in enumerate(callers):
        ask(rates, caller, policies, float(now))
    assert ask(rates, callers[3], policies, 4.0) is not None
    assert ask(rates, callers[0], policies, 4.0) is None


EDITS: Mapping[str, str] = {
    "another name": "rate_limit: [{name: b, requests: 3}]\n",
    "another algorithm": "rate_limit: [{requests: 3, algorithm: token_bucket}]\n",
    "spaced": "rate_limit: [{requests: 3, algorithm: gcra}]\n",
    "both": "rate_limit: [{name: b, requests: 3, algorithm: token_bucket}]\n",
    "one more": "rate_limit: [{name: x}, {requests: 3}]\n",
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_no_free_quota(files: Files, edit: str) -> None:
    before, after = files("rate_limit: [{requests: 3}]\n"), files(EDITS[edit])
    rates = Rates()
    for _ in range(3):
        ask(rates, HOME, before)
    rates.apply(after)
    assert ask(rates, HOME, after, 1.0) is not None


def test_a_tenants_count_survives_an_edit_of_its_limit(files: Files) -> None:
    before, after = (
        files(clients=f"tenants: {{{name}: {{requests: {limit}}}}}\n")
        for name, limit in (("agents", 2), ("Agents", 3))
    )
    rates = Rates()
    for _ in range(2):
        ask(rates, AGENT, before)
    rates.apply(after)
    assert ask(rates, AGENT, after) is None
    assert ask(rates, AGENT, after) is not None


KEYS = ("client", "client_ip", "api_key", "user", "header:x-team")


@pytest.mark.parametrize("seed", range(15))
def test_exact_counts_over_random_schedules(files: Files, seed: int) -> None:
    """Against a count of everything that was admitted, rule by rule."""
    draw = random.Random(seed)
    keys = [draw.choice(KEYS) for _ in range(3)]
    quotas = [(draw.randint(1, 8), draw.randint(1, 40)) for _ in keys]
    text = "".join(
        f"  - {{name: r{n}, key: '{key}', requests: {requests}, window: {window}s}}\n"
        for n, (key, (requests, window)) in enumerate(zip(keys, quotas, strict=True))
    )
    tenants = "tenants: {agents: {requests: 6, window: 20s}, anonymous: {requests: 4}}\n"
    policies = files(f"rate_limit:\n{text}", clients=tenants)
    admitted: dict[tuple[str, str], list[int]] = defaultdict(list)
    rates, now, met = Rates(), 0, Counter[str]()

    def places(caller: Caller, user: str) -> list[tuple[str, str, int, int]]:
        of = {
            "client": caller.key or caller.address,
            "client_ip": caller.address,
            "api_key": caller.key,
            "user": user,
            "header:x-team": caller.headers.get("x-team", ""),
        }
        found = [
            (f"rate_limit:r{n}", of[key], *quota)
            for n, (key, quota) in enumerate(zip(keys, quotas, strict=True))
        ]
        own = ("tenant:agents", "", 6, 20) if caller.tenant else ("tenant:anonymous", "", 4, 60)
        found.append((own[0], caller.tenant.lower() or caller.address, *own[2:]))
        return [one for one in found if one[1]]

    for _ in range(300):
        now += draw.choice([0, 0, 1, 3])
        caller, user = draw.choice([HOME, AGENT, OTHER_AGENT]), draw.choice(["", "ann", "bob"])
        expected, longest = "", 0
        for rule, who, requests, window in places(caller, user):
            recent = [at for at in admitted[rule, who] if at > now - window]
            if len(recent) >= requests and recent[-requests] + window - now > longest:
                expected, longest = rule, recent[-requests] + window - now
        error = ask(rates, caller, policies, float(now), user=user)
        assert (str(error.numbers["rule"]) if error else "") == expected
        assert (error.retry_after if error else 0.0) == longest
        met[expected] += 1
        if error is None:
            for rule, who, _, _ in places(caller, user):
                admitted[rule, who].append(now)
    assert met[""]
    assert len(met) > 1


def test_two_rules_that_edits_have_made_one_since_count_a_request_once(files: Files) -> None:
    """It came under both: its body was long on its way."""
    both = files("rate_limit: [{name: a, requests: 2}, {name: b, requests: 2}]\n")
    one = files("rate_limit: [{name: a, requests: 2}]\n")
    other = files("rate_limit: [{name: b, requests: 2}]\n")
    rates = Rates()
    assert ask(rates, HOME, both) is None
    for policies in (both, one, other):
        rates.apply(policies)
    assert ask(rates, HOME, both) is None
    assert [ask(rates, HOME, policies) is None for policies in (both, other)] == [False, False]


def test_a_rule_that_was_asked_for_when_it_had_gone_leaves_nothing_to_another(
    files: Files,
) -> None:
    """A rename is no free quota, whoever was under way at an earlier edit."""
    both = files("rate_limit: [{name: hourly, requests: 9, window: 1h}, {name: a, requests: 2}]\n")
    one = files("rate_limit: [{name: a, requests: 2}]\n")
    renamed = files("rate_limit: [{name: b, requests: 2}]\n")
    rates = Rates()
    rates.apply(both)
    assert ask(rates, HOME, both) is None
    rates.apply(one)
    assert ask(rates, HOME, both) is None
    rates.states(HOME, both, 0.0)
    rates.apply(renamed)
    assert ask(rates, HOME, renamed) is not None
