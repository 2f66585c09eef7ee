import contextlib
from collections import Counter
from contextlib import nullcontext as does_nothing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.control.admission import Admission
from mlxd.control.applicant import Applicant
from mlxd.control.rules import rules_in_force
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import (
    Draining,
    InsufficientMemory,
    InvalidRequest,
    Overloaded,
    RateLimited,
    TenantBusy,
)
from mlxd.policy.load import load
from mlxd.policy.strict_yaml import parts
from tests.support.daemon import write_policies
from tests.support.queue_model import policies_of


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def scene():
    return Models()


@pytest.fixture
def admission(clock, scene):
    return Admission(clock, scene=scene)


@pytest.fixture
def policies():
    return load()


class Models:
    """A scene: which models are not in memory."""

    def __init__(self) -> None:
        self.cold: set[str] = set()

    def in_memory(self, model):
        return model not in self.cold

    def delays_others(self, model):
        return model in self.cold


def ask(policies, client="a", model="m", **more):
    return Applicant(Caller(client), policies, model, **more)


def enter(admission, policies, *told, client="a", model="m", **more):
    """Under policies that are in force by then."""
    if admission.scheduler.policies is not policies:
        admission.apply(policies)
    return admission.enter(ask(policies, client, model, **more), *told)


async def hold(admission, policies, client="a", model="m"):
    """Enter without leaving; the caller closes it."""
    admission.apply(policies)
    held = admission.admit(ask(policies, client, model))
    await held.__aenter__()
    return held


def left(admission, policies):
    (state,) = admission.rate_states(Caller("a"), policies)
    return state.remaining


async def let_go(*held):
    for one in held:
        await one.__aexit__(None, None, None)


async def test_the_sixth_is_refused_with_the_documented_words(admission, policies):
    held = [await hold(admission, policies) for _ in range(5)]
    with pytest.raises(Overloaded) as refused:
        async with admission.admit(ask(policies, "a")):
            pass
    assert refused.value.message == (
        "Server overloaded. Max 5 concurrent requests (server busy, please try again)"
    )
    assert refused.value.policy is not None
    assert refused.value.policy.key == "limits.concurrency.max_in_flight"
    assert refused.value.retry_after is not None
    assert 1 <= refused.value.retry_after <= 30
    await let_go(*held)
    assert admission.active == 0


async def test_a_slot_is_given_back_whatever_the_way_out_is(admission, policies):
    for error in (ValueError, Overloaded, KeyboardInterrupt):
        with pytest.raises(error):
            async with admission.admit(ask(policies, "a")):
                raise error("x")
    assert admission.active == 0


async def test_the_31st_in_a_window_is_refused_with_the_documented_words(
    admission, policies, clock
):
    for _ in range(30):
        async with admission.admit(ask(policies, "a")):
            clock.advance(1)
    with pytest.raises(RateLimited) as refused:
        async with admission.admit(ask(policies, "a")):
            pass
    assert refused.value.message == "Rate limit exceeded. Max 30 requests per 60 seconds"
    assert refused.value.retry_after == 30
    async with admission.admit(ask(policies, "b")):
        pass
    clock.advance(30)
    async with admission.admit(ask(policies, "a")):
        pass


async def test_a_request_refused_for_load_counts_and_a_wrong_one_does_not(admission, policies):
    held = [await hold(admission, policies) for _ in range(5)]
    for _ in range(24):
        with pytest.raises(Overloaded):
            await hold(admission, policies)
    await let_go(*held)
    for _ in range(10):
        with pytest.raises(InvalidRequest):
            async with admission.admit(ask(policies, "a")):
                raise InvalidRequest("its prompt is too long")
    async with admission.admit(ask(policies, "a")):
        pass
    with pytest.raises(RateLimited):
        await hold(admission, policies)


async def test_a_draining_daemon_takes_nothing_new(admission, policies):
    admission.draining = True
    with pytest.raises(Draining):
        await hold(admission, policies)


async def test_a_model_may_have_a_limit_of_its_own(admission, tmp_path):
    text = 'concurrency:\n  max_in_flight: 9\n  per_model: {"Small:latest": 1}\n'
    policies = load(write_policies(tmp_path, {"limits": text}))
    held = [await hold(admission, policies, model="small")]
    with pytest.raises(Overloaded) as refused:
        await hold(admission, policies, model="small")
    assert refused.value.policy is not None
    assert refused.value.policy.key == 'limits.concurrency.per_model["Small:latest"]'
    held.append(await hold(admission, policies, model="other"))
    await let_go(*held)


async def test_a_rule_that_is_off_neither_counts_nor_refuses(admission, tmp_path):
    text = "rate_limit:\n  - {requests: 1, mode: 'off'}\n"
    policies = load(write_policies(tmp_path, {"limits": text}))
    for _ in range(3):
        async with admission.admit(ask(policies, "a")):
            pass
    assert admission.rate_states(Caller("a"), policies) == []


async def test_the_rate_state_tells_what_is_left(admission, policies, clock):
    async with admission.admit(ask(policies, "a")):
        pass
    clock.advance(20)
    (state,) = admission.rate_states(Caller("a"), policies)
    assert (state.remaining, state.reset) == (29, 40)


def limits(tmp_path, text):
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    return load(write_policies(folder, {"limits": text}))


def test_leaving_twice_gives_one_slot_back(admission, policies):
    first, second = (enter(admission, policies) for _ in range(2))
    admission.leave(first)
    admission.leave(first, refund=True)
    assert admission.active == 1
    assert admission.totals.processed == 1
    assert left(admission, policies) == 28
    admission.leave(second, refund=True)
    assert left(admission, policies) == 29


def test_refusals_are_counted_by_rule(admission, tmp_path):
    text = (
        "concurrency: {max_in_flight: 2, per_model: {Small: 1}}\n"
        "rate_limit: [{name: five, requests: 5}]\n"
    )
    policies = limits(tmp_path, text)
    concurrency = ["concurrency", "concurrency:Small"]
    assert rules_in_force(policies) == ["rate_limit:five", "shed:low", *concurrency]
    enter(admission, policies, model="small")
    for model in ("small", "other", "other", "small", "small"):
        with pytest.raises((Overloaded, RateLimited)) if model == "small" else does_nothing():
            enter(admission, policies, model=model)
            admission.leave(next(t for t in admission._tickets if t.place.model == "other"))
    assert admission.refused == Counter({"concurrency:Small": 2, "rate_limit:five": 1})
    assert admission.would_deny == Counter()


def test_a_dry_run_refuses_nothing_and_tells_what_it_would_have_refused(admission, tmp_path):
    text = (
        "concurrency: {max_in_flight: 2, per_model: {m: 1}, mode: dry_run}\n"
        "rate_limit: [{name: two, requests: 2, mode: dry_run}]\n"
    )
    policies = limits(tmp_path, text)
    told: list = []
    for _ in range(3):
        told.append([])
        enter(admission, policies, told[-1].append)
    assert told == [
        [],
        ["concurrency:m"],
        ["rate_limit:two", "concurrency", "concurrency:m"],
    ]
    assert admission.active == 3
    assert admission.would_deny == Counter(
        {"concurrency:m": 2, "rate_limit:two": 1, "concurrency": 1}
    )
    assert (admission.refused, admission.totals.rejected) == (Counter(), 0)


def test_a_dry_run_does_not_count_what_it_would_have_refused(admission, tmp_path, clock):
    policies = limits(tmp_path, "rate_limit: [{requests: 1, window: 10s, mode: dry_run}]\n")
    told: list = []
    for _ in range(4):  # at 0, 4, 8 and 12 seconds: as if it enforced, only the first one counted
        admission.leave(enter(admission, policies, told.append))
        clock.advance(4)
    assert told == ["rate_limit:per-client"] * 2


def test_a_rule_that_enforces_still_refuses_beside_a_dry_run(admission, tmp_path):
    text = (
        "rate_limit:\n"
        "  - {name: trial, requests: 1, mode: dry_run}\n"
        "  - {name: real, requests: 2}\n"
    )
    policies = limits(tmp_path, text)
    for _ in range(2):
        admission.leave(enter(admission, policies))
    with pytest.raises(RateLimited) as refused:
        enter(admission, policies)
    assert refused.value.policy is not None
    assert refused.value.policy.key == "limits.rate_limit[1].requests"
    assert admission.refused == Counter({"rate_limit:real": 1})


def test_what_a_later_rule_refuses_does_not_count_in_an_earlier_one(admission, tmp_path, clock):
    text = (
        "rate_limit:\n"
        "  - {name: hour, requests: 2, window: 1h}\n"
        "  - {name: second, requests: 1, window: 1s}\n"
    )
    policies = limits(tmp_path, text)
    admission.leave(enter(admission, policies))
    for _ in range(5):
        with pytest.raises(RateLimited):
            enter(admission, policies)
    clock.advance(1)
    admission.leave(enter(admission, policies))


def test_concurrency_that_is_off_is_not_judged(admission, tmp_path):
    policies = limits(tmp_path, "concurrency: {max_in_flight: 1, per_model: {m: 1}, mode: 'off'}\n")
    told: list = []
    for _ in range(3):
        enter(admission, policies, told.append)
    assert told == []
    assert rules_in_force(policies) == ["rate_limit:per-client", "shed:low"]


def test_of_a_concurrency_that_is_off_the_limits_of_tenants_are_left():
    policies = policies_of(mode="off", max_waiting=9, tenants={"a": {"max_in_flight": 1}})
    assert rules_in_force(policies) == ["shed:low", "tenant:a", "queue"]


def test_of_a_concurrency_on_trial_nobody_waits_but_for_limits_of_tenants():
    policies = policies_of(mode="dry_run", max_waiting=9)
    assert rules_in_force(policies) == ["shed:low", "concurrency"]
    policies = policies_of(mode="dry_run", max_waiting=9, tenants={"a": {"max_in_flight": 1}})
    assert rules_in_force(policies) == ["shed:low", "concurrency", "tenant:a", "queue"]


def test_what_a_tenant_may_is_one_rule_whatever_of_it_is_limited():
    tenants = {"a": {"requests": 5, "max_in_flight": 1}}
    policies = policies_of(mode="off", tenants=tenants)
    assert rules_in_force(policies) == ["tenant:a", "shed:low"]


def test_the_owners_own_answers_change_no_limit_of_those_without_a_key(admission):
    policies = policies_of(max_in_flight=9, tenants={"anonymous": {"max_in_flight": 1}})
    admission.apply(policies)
    owner = Applicant(Caller("local", owner=True), policies, "m", rated=False)
    admission.enter(owner)
    enter(admission, policies)
    with pytest.raises(TenantBusy):
        enter(admission, policies)
    admission.enter(owner)


def test_a_lower_limit_stops_nothing_and_refuses_until_enough_have_ended(admission, tmp_path):
    five, two = (limits(tmp_path, f"concurrency: {{max_in_flight: {n}}}\n") for n in (5, 2))
    held = [enter(admission, five) for _ in range(5)]
    admission.apply(two)
    assert admission.active == 5
    while admission.active >= 2:
        with pytest.raises(Overloaded) as refused:
            enter(admission, two, client="b")
        assert "Max 2 concurrent" in refused.value.message
        admission.leave(held.pop())
    held.append(enter(admission, two, client="b"))
    admission.apply(five)
    held += [enter(admission, five, client="b") for _ in range(3)]
    assert admission.active == 5


def test_the_rate_goes_on_counting_across_an_edit(admission, tmp_path, clock):
    before = limits(tmp_path, "rate_limit: [{requests: 3}]\n")
    for _ in range(3):
        admission.leave(enter(admission, before))
    for text in (
        "rate_limit: [{requests: 3}, {name: more, requests: 9}]\n",
        "rate_limit: [{name: renamed, requests: 3}]\n",
        "rate_limit: [{name: renamed, requests: 2, window: 30s}]\n",
    ):
        after = limits(tmp_path, text)
        admission.apply(after)
        with pytest.raises(RateLimited):
            enter(admission, after)
    raised = limits(tmp_path, "rate_limit: [{name: renamed, requests: 4, window: 30s}]\n")
    admission.apply(raised)
    admission.leave(enter(admission, raised))
    with pytest.raises(RateLimited):
        enter(admission, raised)


def test_a_request_counts_once_where_a_rule_leaves_its_name_to_another(admission, tmp_path):
    before = limits(tmp_path, "rate_limit: [{name: a, requests: 4}]\n")
    admission.leave(enter(admission, before))
    text = "rate_limit: [{name: a, key: client_ip, requests: 9}, {name: b, requests: 4}]\n"
    after = limits(tmp_path, text)
    admission.apply(after)
    for _ in range(3):
        admission.leave(enter(admission, after))
    with pytest.raises(RateLimited) as refused:
        enter(admission, after)
    assert refused.value.numbers["rule"] == "rate_limit:b"
    assert refused.value.numbers["used"] == 4


def test_a_refund_after_a_rename_is_given_to_the_heir(admission, tmp_path):
    before = limits(tmp_path, "rate_limit: [{requests: 1}]\n")
    after = limits(tmp_path, "rate_limit: [{name: renamed, requests: 1}]\n")
    ticket = enter(admission, before)
    admission.apply(after)
    admission.leave(ticket, refund=True)
    admission.leave(enter(admission, after))


def rate_rule(quota, name):
    """A set with one rate rule; concurrency plays no part."""
    policies = load()
    requests, window = quota
    rule = policies.limits.rate_limit[0].model_copy(
        update={"name": name, "requests": requests, "window": window}
    )
    changed = policies.limits.model_copy(update={"rate_limit": (rule,)})
    return replace(policies, policies=policies.policies.model_copy(update={"limits": changed}))


ASK = st.tuples(st.just("ask"), st.floats(0.0, 20.0))
EDIT = st.tuples(
    st.just("edit"), st.integers(1, 6), st.floats(0.3, 1.0), st.sampled_from(["x", "y", "z"])
)


@given(st.lists(ASK | EDIT, max_size=60))
@settings(deadline=None, derandomize=True)
def test_no_window_ever_holds_more_than_the_requests_in_force(story):
    """Whatever `requests` and the name become, as long as the window is never lengthened."""
    clock = ManualClock()
    admission = Admission(clock)
    quota = (3, 60.0)
    policies = rate_rule(quota, "x")
    taken: list[float] = []
    for what, *values in story:
        if what == "edit":
            requests, factor, name = values
            quota = (requests, quota[1] * factor)
            policies = rate_rule(quota, name)
            admission.apply(policies)
            continue
        clock.advance(values[0])
        before = sum(at > clock.now - quota[1] for at in taken)
        try:
            admission.leave(enter(admission, policies))
        except RateLimited:
            assert before >= quota[0]
        else:
            taken.append(clock.now)
            assert before + 1 <= quota[0]


def test_what_is_shut_refuses_every_generation_and_load_and_counts_them(admission, policies):
    ticket = enter(admission, policies)
    why = InsufficientMemory("memory is at 98 %")
    admission.shut(why)
    with pytest.raises(InsufficientMemory):
        enter(admission, policies)
    with pytest.raises(InsufficientMemory):
        admission.check_open()
    assert admission.active == 1
    assert left(admission, policies) == 28
    admission.shut(None)
    admission.check_open()
    admission.leave(enter(admission, policies))
    admission.leave(ticket)


def test_those_who_wait_for_one_load_leave_one_slot(admission, scene, tmp_path):
    scene.cold = {"cold", "other cold one"}
    policies = limits(tmp_path, "concurrency: {max_in_flight: 4}\nrate_limit: []\n")
    waiting = [enter(admission, policies, model="cold") for _ in range(3)]
    with pytest.raises(Overloaded) as refused:
        enter(admission, policies, model="cold")
    assert "3 requests wait for model 'cold'" in refused.value.message
    assert refused.value.policy is not None
    assert refused.value.policy.key == "limits.concurrency.max_in_flight"
    other = enter(admission, policies, model="other cold one")
    admission.leave(other)
    admission.leave(enter(admission, policies, model="loaded"))
    waiting[0].loaded()
    enter(admission, policies, model="cold")


def test_one_may_always_wait_for_a_load(admission, scene, tmp_path):
    scene.cold = {"cold", "other cold one"}
    policies = limits(tmp_path, "concurrency: {max_in_flight: 1}\nrate_limit: []\n")
    enter(admission, policies, model="cold")
    with pytest.raises(Overloaded, match="Max 1 concurrent"):
        enter(admission, policies, model="cold")


def test_waiting_for_a_load_is_judged_as_the_rest_of_concurrency_is(admission, scene, tmp_path):
    scene.cold = {"cold", "other cold one"}
    told: list[str] = []
    trial = limits(tmp_path, "concurrency: {max_in_flight: 2, mode: dry_run}\nrate_limit: []\n")
    for _ in range(2):
        enter(admission, trial, told.append, model="cold")
    assert told == ["concurrency"]
    enter(admission, trial, told.append, model="cold")
    assert told == ["concurrency"] * 2, "it would have denied the third once, for two reasons"
    assert admission.would_deny == Counter({"concurrency": 2})


@pytest.mark.parametrize(
    ("per_model", "models", "limit", "key"),
    [
        ("", "defaults: {max_concurrency: 2}\n", 2, "models.defaults.max_concurrency"),
        ("", "models: {M: {max_concurrency: 1}}\n", 1, "models.models.M.max_concurrency"),
        (
            "",
            "defaults: {max_concurrency: 1}\nmodels: {m: {max_concurrency: 3}}\n",
            3,
            "models.models.m.max_concurrency",
        ),
        (
            "",
            "defaults: {max_concurrency: 1}\nmodels: {m: {max_concurrency: inherit}}\n",
            9,
            "limits.concurrency.max_in_flight",
        ),
        (
            "m: 2",
            "models: {m: {max_concurrency: 1}}\n",
            2,
            "limits.concurrency.per_model.m",
        ),
    ],
)
def test_a_model_has_the_concurrency_that_is_said_for_it(
    admission, tmp_path, per_model, models, limit, key
):
    text = f"concurrency: {{max_in_flight: 9, per_model: {{{per_model}}}}}\nrate_limit: []\n"
    policies = load(write_policies(tmp_path, {"limits": text, "models": models}))
    for _ in range(limit):
        enter(admission, policies)
    with pytest.raises(Overloaded) as refused:
        enter(admission, policies)
    assert f"Max {limit} concurrent" in refused.value.message
    assert refused.value.policy is not None
    assert refused.value.policy.key == key


@pytest.mark.parametrize(
    ("per_model", "models", "key"),
    [
        ("", "models: {m: {max_concurrency: 1}}\n", "models.models.m.max_concurrency"),
        ("m: 1, copy: 5", "", "limits.concurrency.per_model.m"),
        ("copy: 1", "", "limits.concurrency.per_model.copy"),
        ("", "models: {copy: {max_concurrency: 1}}\n", "models.models.copy.max_concurrency"),
    ],
)
def test_a_copy_takes_of_the_slots_of_its_model(admission, tmp_path, per_model, models, key):
    text = f"concurrency: {{max_in_flight: 9, per_model: {{{per_model}}}}}\nrate_limit: []\n"
    policies = load(write_policies(tmp_path, {"limits": text, "models": models}))
    enter(admission, policies)
    with pytest.raises(Overloaded) as refused:
        enter(admission, policies, called="copy")
    assert refused.value.policy is not None
    assert refused.value.policy.key == key
    assert admission.active_by_model() == {"m": 1}


@pytest.mark.parametrize("written", ["Org/Big-7B-Instruct-4bit", "big-7b-instruct-4bit", "big:7b"])
@pytest.mark.parametrize(
    ("limits_of", "models", "key"),
    [
        ("{}: 1", "", ("limits", "concurrency", "per_model")),
        ("", "defaults: {{max_concurrency: 5}}\nmodels: {{{}: {{max_concurrency: 1}}}}\n",
         ("models", "models")),
    ],
)  # fmt: skip
def test_a_limit_may_be_said_by_any_of_its_models_names(
    admission, tmp_path, written, limits_of, models, key
):
    quoted = f'"{written}"'
    text = f"concurrency: {{max_in_flight: 9, per_model: {{{limits_of.format(quoted)}}}}}\n"
    files = {"limits": f"{text}rate_limit: []\n", "models": models.format(quoted)}
    policies = load(write_policies(tmp_path, files))
    model = "org/Big-7B-Instruct-4bit"
    enter(admission, policies, model=model)
    with pytest.raises(Overloaded) as refused:
        enter(admission, policies, model=model)
    assert refused.value.policy is not None
    assert refused.value.policy.value == "1"
    ends = () if key[0] == "limits" else ("max_concurrency",)
    assert parts(refused.value.policy.key) == (*key, written, *ends)


@pytest.mark.parametrize(
    ("written", "model"),
    [(["a: 1", "A: 1"], "a"), (["'llama-3.2:3b': 1", "'llama3.2:3b': 1"], "Llama-3.2-3B-Instruct")],
)
def test_of_two_limits_of_one_model_the_same_counts_in_whatever_order(tmp_path, written, model):
    """Files that differ in their order alone are no other policies."""
    keys = set()
    for order in (written, written[::-1]):
        text = f"concurrency: {{max_in_flight: 9, per_model: {{{', '.join(order)}}}}}\n"
        policies = limits(tmp_path, text)
        admission = Admission(ManualClock(), policies)
        enter(admission, policies, model=model)
        with pytest.raises(Overloaded) as refused:
            enter(admission, policies, model=model)
        assert refused.value.policy is not None
        keys.add(refused.value.policy.key)
    assert len(keys) == 1


def test_the_concurrency_of_models_is_among_the_rules_once(tmp_path):
    text = "concurrency: {per_model: {A: 1}}\nrate_limit: []\n"
    models = "models: {a: {max_concurrency: 2}, b: {max_concurrency: 2}, c: {ttl: never}}\n"
    policies = load(write_policies(tmp_path, {"limits": text, "models": models}))
    rules = ["shed:low", "concurrency", "concurrency:A", "concurrency:b"]
    assert rules_in_force(policies) == rules


def test_what_holds_for_each_model_is_one_rule(admission, tmp_path):
    models = "defaults: {max_concurrency: 1}\nmodels: {b: {max_concurrency: 2}}\n"
    policies = load(write_policies(tmp_path, {"limits": "rate_limit: []\n", "models": models}))
    rules = ["shed:low", "concurrency", "concurrency:b", "concurrency:*"]
    assert rules_in_force(policies) == rules
    for model in ("a", "a", "c", "c"):
        with contextlib.suppress(Overloaded):
            enter(admission, policies, model=model)
    assert admission.refused == Counter({"concurrency:*": 2})


def test_what_classes_and_tenants_have_of_their_own_is_among_the_rules(tmp_path):
    text = "concurrency: {max_waiting: 5}\nrate_limit: []\n"
    clients = (
        "priorities: {high: {borrow: false}, low: {max_share: 50%, shed_at: never}}\n"
        "tenants: {a: {requests: 5, max_in_flight: 2}, b: {daily_tokens: 5}, c: {weight: 2}}\n"
    )
    policies = load(write_policies(tmp_path, {"limits": text, "clients": clients}))
    assert rules_in_force(policies) == [
        "tenant:b:daily_tokens", "tenant:a", "concurrency",
        "priority:high", "priority:low", "queue",
    ]  # fmt: skip


@pytest.mark.parametrize("jump", [3600, -24 * 3600])
def test_a_wall_clock_that_jumps_moves_no_window(clock, admission, jump):
    policies = rate_rule((2, 60.0), "x")
    for _ in range(2):
        admission.leave(enter(admission, policies))
    clock.advance(30)
    clock.epoch += jump
    with pytest.raises(RateLimited) as refused:
        enter(admission, policies)
    assert refused.value.retry_after == pytest.approx(30, abs=1)
    clock.advance(31)
    admission.leave(enter(admission, policies))
