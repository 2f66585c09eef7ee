"""Whether what was refused would be refused again."""

from __future__ import annotations

import pytest

from mlxd.control.admission import Admission
from mlxd.control.applicant import Applicant
from mlxd.control.ticket import Ticket
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import Again, InvalidRequest, Overloaded, RateLimited
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet

_ONE_SLOT = ("limits.concurrency.max_in_flight", "1")
_NOBODY_WAITS = ("limits.concurrency.max_waiting", "0")


def policies(*overrides: tuple[str, str]) -> PolicySet:
    return load(None, [Override(key, text, "a test", yaml=True) for key, text in overrides])


def rate(requests: int, key: str = "client") -> tuple[str, str]:
    rule = f"[{{name: r, requests: {requests}, window: 60s, key: {key}}}]"
    return ("limits.rate_limit", rule)


class Bench:
    def __init__(self, *overrides: tuple[str, str]) -> None:
        self.clock = ManualClock()
        self.policies = policies(_ONE_SLOT, _NOBODY_WAITS, *overrides)
        self.admission = Admission(self.clock, self.policies)

    def enter(self, client: str = "a") -> Ticket:
        return self.admission.enter(Applicant(Caller(client), self.policies, "m"))

    def refused(self, client: str = "a") -> Again:
        with pytest.raises((RateLimited, Overloaded)) as caught:
            self.enter(client)
        assert caught.value.again is not None
        return caught.value.again


def test_a_full_server_is_full_until_somebody_leaves() -> None:
    bench = Bench(("limits.rate_limit", "[]"))
    ticket = bench.enter("b")
    again = bench.refused()
    assert again.still()
    assert again.still()
    assert not again.whatever
    assert bench.admission.totals.rejected == 3
    assert bench.admission.refused == {"concurrency": 3}
    bench.admission.leave(ticket)
    assert not again.still()
    assert bench.admission.totals.rejected == 3


def test_each_refusal_for_want_of_a_slot_counts_towards_the_rate() -> None:
    bench = Bench(rate(3))
    bench.enter("b")
    again = bench.refused()
    assert again.still()
    assert again.still()
    assert not again.still()
    with pytest.raises(RateLimited):
        bench.enter()


def test_what_a_rule_on_trial_would_refuse_goes_the_ordinary_way() -> None:
    trial = "{name: t, requests: 2, window: 60s, mode: dry_run}"
    bench = Bench(("limits.rate_limit", f"[{{name: r, requests: 4, window: 60s}}, {trial}]"))
    bench.enter("b")
    again = bench.refused()
    assert again.still()
    assert not again.still()
    assert not bench.admission.would_deny
    bench.refused()
    assert bench.admission.would_deny == {"rate_limit:t": 1}
    bench.refused()  # the fourth that counts: what is not vouched for did not
    with pytest.raises(RateLimited):
        bench.enter()


def test_a_quota_is_used_up_until_its_time() -> None:
    bench = Bench(rate(1))
    bench.admission.leave(bench.enter())
    bench.clock.advance(20)
    again = bench.refused()
    assert again.whatever
    bench.clock.advance(39.9)
    assert again.still()
    bench.clock.advance(0.1)
    assert not again.still()
    bench.enter()


def test_a_place_in_the_quota_that_is_given_back_is_free_at_once() -> None:
    bench = Bench(rate(1))
    ticket = bench.enter()
    again = bench.refused()
    assert again.still()
    bench.admission.leave(ticket, refund=True)
    assert not again.still()


def test_a_rule_for_users_has_to_see_the_body() -> None:
    bench = Bench(rate(1, "user"), ("limits.concurrency.max_in_flight", "9"))
    asks = Applicant(Caller("a"), bench.policies, "m", user="u")
    bench.admission.enter(asks)
    with pytest.raises(RateLimited) as caught:
        bench.admission.enter(asks)
    assert caught.value.again is not None
    assert not caught.value.again.whatever


@pytest.mark.parametrize("what", ["apply", "shut", "drain"])
def test_nothing_is_vouched_for_once_the_daemon_changes(what: str) -> None:
    bench = Bench(("limits.rate_limit", "[]"))
    bench.enter("b")
    again = bench.refused()
    match what:
        case "apply":
            bench.admission.apply(policies(("limits.concurrency.max_in_flight", "2")))
        case "shut":
            bench.admission.shut(Overloaded("for now"))
        case _:
            bench.admission.draining = True
    assert not again.still()


async def test_what_is_wrong_in_itself_is_not_vouched_for() -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest) as caught:
        async with bench.admission.admit(Applicant(Caller("a"), bench.policies, "m")):
            raise InvalidRequest("no")
    assert caught.value.again is None


def test_nothing_is_vouched_for_once_time_alone_has_changed_the_slots() -> None:
    adaptive = "{enabled: true, min: 1, ttft: 1s, interval: 10s}"
    bench = Bench(
        ("limits.rate_limit", "[]"),
        ("limits.concurrency.max_in_flight", "2"),
        ("limits.adaptive", adaptive),
    )
    bench.enter("b")
    bench.admission.measured(5.0, None)
    bench.clock.advance(10)
    again = bench.refused()
    bench.admission.measured(0.1, None)
    assert again.still()
    bench.clock.advance(10)
    bench.enter("c")
    assert not again.still()
