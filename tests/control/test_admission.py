import pytest

from mlxd.control.admission import Admission
from mlxd.core.clock import ManualClock
from mlxd.core.errors import Draining, InvalidRequest, Overloaded, RateLimited
from mlxd.policy.load import load
from tests.support.daemon import write_policies


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def admission(clock):
    return Admission(clock)


@pytest.fixture
def policies():
    return load()


async def hold(admission, policies, client="a", model="m"):
    """Enter without leaving; the caller closes it."""
    held = admission.admit(client, model, policies)
    await held.__aenter__()
    return held


async def let_go(*held):
    for one in held:
        await one.__aexit__(None, None, None)


async def test_the_sixth_is_refused_with_the_documented_words(admission, policies):
    held = [await hold(admission, policies) for _ in range(5)]
    with pytest.raises(Overloaded) as refused:
        async with admission.admit("a", "m", policies):
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
            async with admission.admit("a", "m", policies):
                raise error("x")
    assert admission.active == 0


async def test_the_31st_in_a_window_is_refused_with_the_documented_words(
    admission, policies, clock
):
    for _ in range(30):
        async with admission.admit("a", "m", policies):
            clock.advance(1)
    with pytest.raises(RateLimited) as refused:
        async with admission.admit("a", "m", policies):
            pass
    assert refused.value.message == "Rate limit exceeded. Max 30 requests per 60 seconds"
    assert refused.value.retry_after == 30
    async with admission.admit("b", "m", policies):
        pass
    clock.advance(30)
    async with admission.admit("a", "m", policies):
        pass


async def test_a_request_refused_for_load_counts_and_a_wrong_one_does_not(admission, policies):
    held = [await hold(admission, policies) for _ in range(5)]
    for _ in range(24):
        with pytest.raises(Overloaded):
            await hold(admission, policies)
    await let_go(*held)
    for _ in range(10):
        with pytest.raises(InvalidRequest):
            async with admission.admit("a", "m", policies):
                raise InvalidRequest("its prompt is too long")
    async with admission.admit("a", "m", policies):
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
        async with admission.admit("a", "m", policies):
            pass
    assert admission.rate_state("a", policies) is None


async def test_the_rate_state_tells_what_is_left(admission, policies, clock):
    async with admission.admit("a", "m", policies):
        pass
    clock.advance(20)
    state = admission.rate_state("a", policies)
    assert state is not None
    assert (state.remaining, state.reset) == (29, 40)
