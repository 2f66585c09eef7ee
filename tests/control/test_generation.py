import asyncio

import pytest

from mlxd.control.dispatch import _engine_bytes
from mlxd.control.generation import ENGINE_BYTES, Generation, Limits, Pulse
from mlxd.control.transcript import Transcript
from mlxd.core.clock import ManualClock, SystemClock, stamp
from mlxd.core.errors import (
    ContextExceeded,
    DeadlineExceeded,
    InsufficientMemory,
    InvalidRequest,
    MlxdError,
    PolicyLine,
    WorkerCrashed,
    WorkerStalled,
)
from mlxd.core.events import Burst, Finished, ReasoningDelta, TextDelta, ToolCall
from mlxd.ipc import messages as ipc
from mlxd.policy.load import Override, load
from tests.support.virtual_time import VirtualLoop

ENDED = ipc.Ended(1, "stop", 3, 2, 0, 0.1, 0.2)


@pytest.fixture
def loop():
    made = VirtualLoop()
    yield made
    made.close()


def generation(*, total=60.0, first=60.0, between=60.0, pulse=None, clock=None):
    limits = Limits(total, first, between, 1.0, lambda key: PolicyLine(key, "x", "y"))
    return Generation(1, limits, clock or SystemClock(), pulse or Pulse())


def decoding(**limits):
    """One whose worker has begun to decode."""
    running = generation(**limits)
    running.answer(ipc.Accepted(1, 3))
    running.started()
    running.begun()
    return running


def come(running, *pieces):
    """All in one message."""
    for piece in pieces:
        running.take(piece)
    running.hand_on()


async def events_of(running):
    return [event for burst in [b async for b in running.bursts()] for event in burst]


async def test_what_came_together_is_one_burst():
    running = generation()
    running.take(ipc.Text(1, "a"))
    running.take(ipc.Text(1, "b"))
    running.take(ENDED)
    (burst,) = [burst async for burst in running.bursts()]
    assert burst[:2] == [TextDelta("a"), TextDelta("b")]
    assert isinstance(burst[2], Finished)
    assert running.ended


async def test_a_consumer_that_waits_is_woken_by_each_piece():
    running = generation()
    bursts = running.bursts()
    waiting = asyncio.create_task(anext(bursts))
    await asyncio.sleep(0)
    come(running, ipc.Text(1, "a"))
    assert await waiting == [TextDelta("a")]
    waiting = asyncio.create_task(anext(bursts))
    await asyncio.sleep(0)
    come(running, ENDED)
    assert len(await waiting) == 1
    with pytest.raises(StopAsyncIteration):
        await anext(bursts)


async def test_what_is_pushed_leaves_its_consumer_asleep():
    running = generation()
    pushed: list[Burst] = []

    def push(burst):
        pushed.append(list(burst))
        return True

    running.transcript.push = push
    bursts = running.bursts()
    waiting = asyncio.create_task(anext(bursts))
    await asyncio.sleep(0)
    come(running, ipc.Text(1, "a"), ipc.Reasoning(1, "b"))
    come(running, ipc.Text(1, "c"))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert pushed == [[TextDelta("a"), ReasoningDelta("b")], [TextDelta("c")]]
    come(running, ipc.Text(1, "d"), ENDED)
    text, end = await waiting
    assert (text, type(end)) == (TextDelta("d"), Finished), "its end comes to the consumer"
    assert len(pushed) == 2


async def test_what_cannot_be_pushed_comes_to_the_consumer_with_what_follows():
    running = generation()
    asked: list[Burst] = []

    def push(burst):
        asked.append(burst)
        return False

    running.transcript.push = push
    bursts = running.bursts()
    waiting = asyncio.create_task(anext(bursts))
    await asyncio.sleep(0)
    come(running, ipc.Text(1, "a"))
    come(running, ipc.Text(1, "b"))
    assert len(asked) == 1, "it is awake by now"
    assert await waiting == [TextDelta("a"), TextDelta("b")]
    come(running, ipc.Text(1, "c"))
    assert len(asked) == 1, "it is not waiting"
    assert await anext(bursts) == [TextDelta("c")]


@pytest.mark.parametrize("how", ["cancelled", "call", "ended"])
async def test_nothing_is_pushed_past_a_consumer_who_has_to_know(how):
    running = generation()
    running.transcript.push = lambda burst: pytest.fail("pushed")
    waiting = asyncio.create_task(anext(running.bursts()))
    await asyncio.sleep(0)
    if how == "cancelled":
        waiting.cancel()
    elif how == "ended":
        come(running, ipc.Text(1, "a"), ipc.Cancelled(1))
        assert await waiting == [TextDelta("a")]
    else:
        come(running, ipc.Text(1, "a"), ipc.Call(1, "name", {}))
        assert await waiting == [TextDelta("a"), ToolCall("name", {})]
    come(running, ipc.Text(1, "a"))
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_the_worker_may_begin_in_the_moment_in_which_a_consumer_leaves():
    """The consumer's own turn, in which it is cancelled at the worker, comes behind."""
    running = generation()
    waiting = asyncio.create_task(running.accepted())
    await asyncio.sleep(0)
    waiting.cancel()
    running.answer(ipc.Accepted(1, 3, prompt=ipc.packed([7, 8, 9])))
    running.started()
    running.reused(ipc.Reused(1, 2))
    running.begun()
    come(running, ipc.Text(1, "a"))
    await asyncio.wait([waiting])


async def test_an_error_comes_after_what_was_delivered():
    running = generation()
    running.take(ipc.Text(1, "a"))
    running.fail(WorkerCrashed("gone"))
    bursts = running.bursts()
    assert await anext(bursts) == [TextDelta("a")]
    with pytest.raises(WorkerCrashed):
        await anext(bursts)


async def test_what_an_acceptance_was_under_way_is_no_waiting():
    prompt, late = generation(), generation()
    prompt.answer(ipc.Accepted(1, 3, at=stamp()))
    late.answer(ipc.Accepted(1, 3, at=stamp() - 5))
    waits = [(await running.accepted()).wait_seconds for running in (prompt, late)]
    assert waits[0] - waits[1] == pytest.approx(5, abs=1)


async def test_a_refusal_reaches_whoever_waits_for_acceptance():
    running = generation()
    key = "limits.tokens.max_prompt"
    running.answer(ipc.Refused(1, "context_exceeded", "too long", "messages", key))
    with pytest.raises(ContextExceeded) as refused:
        await running.accepted()
    assert refused.value.param == "messages"
    assert refused.value.policy == PolicyLine(key, "x", "y")
    assert running.ended


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [
        ({"prompt_tokens": 9, "allowed_tokens": 8}, "a prompt of at most 8 tokens"),
        ({"fitting_tokens": 20}, "prompt and answer of at most 20 tokens together"),
        ({}, ""),
    ],
)
async def test_a_prompt_that_is_too_long_says_what_would_fit(numbers, fits):
    running = generation()
    running.answer(ipc.Refused(1, "context_exceeded", "too long", numbers=numbers))
    with pytest.raises(ContextExceeded) as refused:
        await running.accepted()
    assert (refused.value.numbers, refused.value.would_pass) == (numbers, fits)


@pytest.mark.parametrize("limit", ["20MB", "30MB", "auto"])
async def test_memory_that_the_operator_bounds_is_told_with_its_line(limit):
    """A worker only knows how much it is."""
    set_ = Override("memory.worker_limits.mlx_memory_limit", limit, "a test")
    policies = load(None, [set_])
    limits = Limits(9, 9, 9, 9, policies.line, _engine_bytes(policies))
    running = Generation(1, limits, SystemClock(), Pulse())
    running.answer(ipc.Refused(1, "context_exceeded", "too long", available_bytes=20_000_000))
    with pytest.raises(ContextExceeded) as refused:
        await running.accepted()
    line = refused.value.policy
    assert line == (policies.line(ENGINE_BYTES) if limit == "20MB" else None)


@pytest.mark.parametrize(
    ("limits", "error", "key"),
    [
        ({"total": 0.02}, DeadlineExceeded, "timeouts.generation"),
        ({"first": 0.02}, DeadlineExceeded, "timeouts.first_token"),
    ],
)
async def test_a_limit_that_passes_says_which_it_was(limits, error, key):
    running = generation(**limits)
    running.answer(ipc.Accepted(1, 3))
    running.started()
    with pytest.raises(error) as passed:
        await events_of(running)
    assert passed.value.policy is not None
    assert passed.value.policy.key == key
    numbers = passed.value.numbers
    assert numbers["limit_seconds"] == 0.02
    assert 0.02 <= float(numbers["elapsed_seconds"]) < 60
    assert passed.value.would_pass
    assert not running.ended, "the worker still works on it"


async def test_silence_between_tokens_is_a_stall():
    running = decoding(between=0.02)
    running.take(ipc.Text(1, "a"))
    with pytest.raises(WorkerStalled):
        await events_of(running)


def test_a_worker_that_steps_is_not_silent(loop):
    began = loop.now

    async def stall():
        running = decoding(between=0.05, pulse=Pulse(began + 0.1), clock=loop)
        running.take(ipc.Text(1, "a"))
        with pytest.raises(WorkerStalled):
            await events_of(running)

    loop.run(stall())
    assert loop.now - began == pytest.approx(0.15)


async def test_a_worker_that_never_accepts_is_not_waited_for():
    running = generation(first=0.02)
    with pytest.raises(DeadlineExceeded):
        await running.accepted()


def test_no_limit_counts_while_a_request_waits_behind_others_in_a_working_worker(loop):
    async def served():
        pulse = Pulse()
        running = generation(total=0.05, first=0.05, pulse=pulse, clock=loop)
        running.answer(ipc.Accepted(1, 3))
        for _ in range(10):
            pulse.at = loop.now
            await asyncio.sleep(0.02)
        running.started()
        running.take(ENDED)
        return await events_of(running)

    assert len(loop.run(served())) == 1


def test_tokens_keep_a_stall_away(loop):
    async def fed():
        running = decoding(between=0.05, clock=loop)
        events = asyncio.create_task(events_of(running))
        for _ in range(5):
            come(running, ipc.Text(1, "a"))
            await asyncio.sleep(0.04)
        come(running, ENDED)
        return await events

    assert len(loop.run(fed())) == 6


async def test_a_request_that_was_accepted_may_still_be_refused():
    running = generation()
    running.answer(ipc.Accepted(1, 3))
    running.take(ipc.Text(1, "a"))
    running.answer(ipc.Refused(1, "invalid_request", "sampling failed"))
    bursts = running.bursts()
    assert await anext(bursts) == [TextDelta("a")]
    with pytest.raises(InvalidRequest):
        await anext(bursts)


async def test_an_unheard_cancel_is_noticed():
    running = generation()
    assert not await running.until_ended(0.01)
    running.take(ipc.Cancelled(1))
    assert await running.until_ended(0.01)


async def test_a_refusal_for_memory_says_what_was_compared():
    running = generation()
    key = "memory.reserve.when_full"
    running.answer(
        ipc.Refused(
            1, "insufficient_memory", "no room", None, key, needed_bytes=9, available_bytes=4
        )
    )
    with pytest.raises(InsufficientMemory) as refused:
        await running.accepted()
    assert (refused.value.needed_bytes, refused.value.available_bytes) == (9, 4)
    assert refused.value.retry_after
    assert refused.value.policy == PolicyLine(key, "x", "y")


async def test_a_worker_that_gives_signs_of_life_may_keep_a_request_waiting_for_memory():
    pulse = Pulse(SystemClock().monotonic() + 60)
    running = generation(first=0.001, pulse=pulse)
    waiting = asyncio.create_task(running.accepted())
    assert not await running.until_ended(0.05), "long after the limit would have passed"
    running.answer(ipc.Accepted(1, 3))
    assert (await waiting).prompt_tokens == 3


async def test_an_interrupted_generation_ends_for_its_client_and_not_yet_for_the_worker():
    running = generation(first=0.02)
    running.answer(ipc.Accepted(1, 3))
    running.take(ipc.Text(1, "a"))
    assert running.interrupt(InsufficientMemory("memory is short"))
    assert not running.interrupt(InsufficientMemory("again"))
    bursts = running.bursts()
    assert await anext(bursts) == [TextDelta("a")]
    running.begun()
    running.take(ipc.Text(1, "b"))
    with pytest.raises(InsufficientMemory, match="memory is short"):
        await anext(bursts)
    assert not running.ended
    running.take(ipc.Cancelled(1))
    assert running.ended
    assert not running.interrupt(InsufficientMemory("late"))


async def test_of_a_consumer_that_falls_far_behind_somebody_is_told():
    clock, transcript, told = ManualClock(), Transcript(), []
    limits = Limits(60, 60, 60, 1.0, lambda key: PolicyLine(key, "x", "y"))
    running = Generation(1, limits, clock, Pulse(), transcript)
    transcript.too_much = lambda: told.append(running.interrupt(MlxdError("later")))
    scores = [ipc.Logprob("x", b"x", -0.1, [("y", b"y", -1.0)] * 20)]
    for _ in range(1000):
        clock.advance(0.01)
        running.take(ipc.Text(1, "x", scores))
        running.note([1])
        running.hand_on()
    assert told == [True]
    bursts = running.bursts()
    first = await anext(bursts)
    scored = sum(len(event.logprobs) for event in first if isinstance(event, TextDelta))
    assert len(transcript.tokens) == scored < 300
    with pytest.raises(MlxdError, match="later"):
        await anext(bursts)


async def test_who_goes_on_knows_whether_the_prompt_was_told():
    running = generation()
    running.answer(ipc.Accepted(1, 3, prompt=ipc.packed([7, 8, 9])))
    assert running.transcript.resume() == ipc.Resume(ipc.packed([7, 8, 9]))
    running.take(ipc.Text(1, "a"))
    assert not running.transcript.told_prompt
    running.take(ipc.Echoed(1, "once"))
    assert running.transcript.resume() == ipc.Resume(ipc.packed([7, 8, 9]), echoed=True)


async def test_a_prompt_that_came_too_late_was_not_told():
    running = generation()
    running.interrupt(WorkerStalled("no"))
    running.take(ipc.Echoed(1, "once"))
    assert not running.transcript.told_prompt


async def test_a_prompt_that_is_told_in_parts_is_one_event_and_told_with_the_last():
    running = generation()
    scores = [ipc.Logprob(name, name.encode(), -1.0) for name in "abc"]
    running.take(ipc.Echoed(1, "", scores[:2], more=True))
    assert not running.transcript.told_prompt
    running.take(ipc.Echoed(1, "abc", scores[2:]))
    assert running.transcript.told_prompt
    running.take(ENDED)
    echo, _ = await events_of(running)
    assert (echo.text, [entry.token for entry in echo.logprobs]) == ("abc", list("abc"))
