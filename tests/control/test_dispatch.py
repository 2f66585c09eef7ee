"""What becomes of a request before a worker hears of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest

from mlxd.control.admission import Admission
from mlxd.control.dispatch import Asker, Dispatcher
from mlxd.control.fingerprint import fingerprint_of
from mlxd.control.residency import Lease
from mlxd.control.resident import Load
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import InvalidRequest, Overloaded, RequestQuarantined, UnsupportedFeature
from mlxd.core.events import Finished, TextDelta
from mlxd.core.models import ModelCard
from mlxd.core.preset import Preset
from mlxd.core.request import GenerationRequest, Message, Sampling, ToolChoice
from mlxd.core.story import untold
from mlxd.policy.load import PolicySet, load


def asker(client: str, policies: PolicySet) -> Asker:
    return Asker(Caller(client), policies, lambda rule: None, untold(client))


class Parts:
    """Stand beside a dispatcher: a model in memory, and whoever runs generations."""

    def __init__(self) -> None:
        self.card = ModelCard(
            "m", "/m", 1, "0" * 64, 0.0, "llama", 1, "f32", 512, ("completion", "embedding")
        )
        self.orders: list[Any] = []
        self.cases: list[Any] = []
        self.bursts: list[Any] = []
        self.refusal: Exception | None = None
        self.load: Load | None = None

    async def resolve(self, model, policies):
        return self.card

    @asynccontextmanager
    async def lease(self, card, keep_alive, policies):
        yield Lease(self.worker, self.load)

    async def worker(self):
        raise AssertionError("nobody runs anything here")

    def check(self, case, policies):
        if self.refusal is not None:
            raise self.refusal

    async def run(self, order, case, lease, policies):
        self.orders.append(order)
        self.cases.append(case)
        for burst in self.bursts:
            yield burst


async def opened(parts: Any, sampling: Sampling, admission: Admission | None = None) -> None:
    admission = admission or Admission(ManualClock())
    dispatcher = Dispatcher(
        parts, admission, parts, parts, clock=ManualClock(), draw_seed=lambda: 77
    )
    request = GenerationRequest(model="m", text="x", sampling=sampling)
    async with dispatcher.open(request, asker("c", load())) as bursts:
        assert [burst async for burst in bursts] == []


@pytest.mark.parametrize(
    ("sampling", "seed"),
    [
        (Sampling(temperature=0.8), 77),
        (Sampling(), 77),
        (Sampling(temperature=0.8, seed=5), 5),
        (Sampling(temperature=0.0), None),
    ],
)
async def test_tokens_are_drawn_with_a_seed_that_is_no_part_of_the_case(sampling, seed):
    parts = Parts()
    await opened(parts, sampling)
    assert parts.orders[0].sampling.seed == seed
    assert parts.cases[0].sampling == sampling


async def test_an_order_knows_what_computes_it():
    parts = Parts()
    await opened(parts, Sampling())
    assert parts.orders[0].fingerprint == fingerprint_of(parts.card)


@pytest.mark.parametrize("how", [None, Load(0.0, 1.0, None, ())])
async def test_its_story_says_which_model_it_got_and_how(how):
    parts: Any = Parts()
    parts.load = how
    who = asker("c", load())
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    async with dispatcher.open(GenerationRequest(model="copy", text="x"), who) as bursts:
        assert [burst async for burst in bursts] == []
    assert who.story.model == "m"
    assert parts.orders[0].story is who.story
    (note,) = [note for note in who.story.notes if note.what == "leased"]
    assert note.facts["loaded"] is (how is not None)


async def test_so_does_that_of_a_load():
    parts: Any = Parts()
    story = untold()
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    await dispatcher.load("m", None, load(), story=story)
    assert (story.model, [note.what for note in story.notes]) == ("m", ["leased"])


async def test_a_request_in_quarantine_takes_no_slot():
    parts, admission = Parts(), Admission(ManualClock())
    parts.refusal = RequestQuarantined("no")
    with pytest.raises(RequestQuarantined):
        await opened(parts, Sampling(), admission)
    assert admission.totals.processed == 0
    assert not parts.orders


async def test_a_request_with_a_bad_grammar_takes_no_slot_and_is_not_counted() -> None:
    parts: Any = Parts()
    admission, policies = Admission(ManualClock()), load()

    async def refuse(request: GenerationRequest, client: str) -> None:
        raise InvalidRequest("format: no")

    dispatcher = Dispatcher(
        parts, admission, parts, parts, clock=ManualClock(), check_grammar=refuse
    )
    request = GenerationRequest(model="m", text="x", format={"type": 5})
    with pytest.raises(InvalidRequest):
        async with dispatcher.open(request, asker("c", policies)):
            pass
    (state,) = admission.rate_states(Caller("c"), policies)
    assert state.requests == state.remaining
    assert admission.totals.processed == 0
    assert not parts.orders


async def test_each_grammar_of_a_call_is_judged_once() -> None:
    parts: Any = Parts()
    parts.bursts = [[Finished("stop", 1, 1)]]
    told: list[tuple[Any, str]] = []

    async def note(request: GenerationRequest, client: str) -> None:
        told.append((request.format or request.pattern, client))

    clock = ManualClock()
    dispatcher = Dispatcher(parts, Admission(clock), parts, parts, clock=clock, check_grammar=note)
    schema = {"type": "object"}
    requests = [GenerationRequest(model="m", text=str(n), format=schema) for n in range(8)]
    requests.append(GenerationRequest(model="m", text="x", pattern="a+"))
    async with dispatcher.open_all(requests, asker("c", load())):
        pass
    assert told == [(schema, "c"), ("a+", "c")]


async def test_several_generations_take_one_slot_and_count_once() -> None:
    parts: Any = Parts()
    parts.bursts = [[TextDelta("x")], [Finished("stop", 1, 1)]]
    admission = Admission(ManualClock())
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    policies = load()
    requests = [GenerationRequest(model="m", text=str(n)) for n in range(8)]
    (before,) = admission.rate_states(Caller("c"), policies)
    async with dispatcher.open_all(requests, asker("c", policies)) as bursts:
        got = []
        async for number, _ in bursts:
            assert admission.active == 1
            got.append(number)
    (after,) = admission.rate_states(Caller("c"), policies)
    assert sorted(got) == sorted([*range(8), *range(8)])
    assert admission.active == 0
    assert before.remaining - after.remaining == 1


@pytest.mark.parametrize(("want", "slots", "rated"), [("embedding", 1, 0), ("prompt", 0, 0)])
async def test_what_is_no_answer_is_not_rated(want: Any, slots: int, rated: int) -> None:
    parts: Any = Parts()
    admission = Admission(ManualClock())
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    policies = load()
    request = GenerationRequest(model="m", want=want, text="x")
    async with dispatcher.open(request, asker("c", policies)):
        assert admission.active == slots
    (state,) = admission.rate_states(Caller("c"), policies)
    assert state.requests - state.remaining == rated


async def test_few_prompts_of_one_client_are_told_at_a_time() -> None:
    parts: Any = Parts()
    parts.bursts, go, inside = [[Finished("stop", 1, 0)]], asyncio.Event(), list[str]()
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    request = GenerationRequest(model="m", want="prompt", text="x")

    async def tell(client: str) -> None:
        async with dispatcher.open(request, asker(client, load())):
            inside.append(client)
            await go.wait()

    tasks = [asyncio.create_task(tell("a")) for _ in range(34)]
    tasks.append(asyncio.create_task(tell("b")))
    await asyncio.sleep(0.01)
    assert inside == ["a", "a", "b"]
    with pytest.raises(Overloaded):
        await tell("a")
    tasks[5].cancel()
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert inside.count("a") == 33
    assert not dispatcher._prompts._lines


@pytest.mark.parametrize(
    ("capable", "asked", "words"),
    [
        (("completion",), {"want": "embedding", "text": "x"}, "embeddings"),
        (("embedding",), {"text": "x"}, "generate"),
        (("embedding",), {"messages": (Message("user"),)}, "chat"),
        (("embedding",), {"want": "embedding", "text": "x"}, ""),
        (("embedding",), {"want": "prompt", "text": "x"}, ""),
    ],
)
async def test_only_what_a_model_can_is_asked_of_it(capable, asked, words) -> None:
    parts: Any = Parts()
    parts.card = replace(parts.card, capabilities=capable)
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    refused = pytest.raises(UnsupportedFeature, match=f'"m" does not support {words}')
    with refused if words else nullcontext():
        request = GenerationRequest(model="m", **asked)
        async with dispatcher.open(request, asker("c", load())):
            pass


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"format": {"type": "object"}}, True),
        ({"tool_choice": ToolChoice(required=True)}, True),
        ({"format": {"type": "object"}, "want": "prompt"}, False),
        ({}, False),
    ],
)
async def test_what_a_grammar_holds_goes_on_behind_nothing(asked: Any, *, refused: bool) -> None:
    parts: Any = Parts()
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    turns = (Message("user", "hi"), Message("assistant", "{"))
    request = GenerationRequest(model="m", messages=turns, continue_last=True, **asked)
    words = pytest.raises(InvalidRequest, match="cannot go on behind")
    with words if refused else nullcontext():
        async with dispatcher.open(request, asker("c", load())):
            pass


async def test_a_gap_is_for_models_that_fill_one() -> None:
    parts: Any = Parts()
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    request = GenerationRequest(model="m:1b", text="x", suffix="y")
    someone = asker("c", load())
    with pytest.raises(UnsupportedFeature, match=r"^m:1b does not support insert$"):
        async with dispatcher.open(request, someone):
            pass
    parts.card = replace(parts.card, capabilities=("completion", "insert"))
    async with dispatcher.open(request, someone) as bursts:
        assert [burst async for burst in bursts] == []


async def test_what_a_created_model_says_stands_in_each_request() -> None:
    parts: Any = Parts()
    preset = Preset(system="S", stop=("x",), max_tokens=3)
    parts.card = replace(parts.card, preset=preset)
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    request = GenerationRequest(model="m", messages=(Message("user", "hi"),))
    async with dispatcher.open(request, asker("c", load())) as bursts:
        assert [burst async for burst in bursts] == []
    (order,) = parts.orders
    assert order.request == preset.applied(request)
    assert order.request.messages[0] == Message("system", "S")
