"""What becomes of a request before a worker hears of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.control.admission import Admission
from mlxd.control.dispatch import Asker, Dispatcher
from mlxd.control.fingerprint import fingerprint_of
from mlxd.control.headway import Headway
from mlxd.control.residency import Lease
from mlxd.control.resident import Load
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import (
    Forbidden,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
    RequestQuarantined,
    ResumeExpired,
    UnsupportedFeature,
)
from mlxd.core.events import Finished, TextDelta
from mlxd.core.models import ModelCard
from mlxd.core.preset import Preset
from mlxd.core.request import GenerationRequest, Message, Sampling, ToolChoice
from mlxd.core.story import untold
from mlxd.core.trace_context import Trace, TraceContext
from mlxd.ipc.messages import FrameReader, decode_down
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet
from tests.support.daemon import write_policies
from tests.support.queue_model import policies_of


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
        self.digest = ""
        self.kept: list[float | None] = []
        self.unloaded: list[Any] = []

    async def resolve(self, model, policies, caller=None):
        return self.card

    def as_served(self, card):
        return card

    @asynccontextmanager
    async def lease(self, card, keep_alive, policies):
        self.kept.append(keep_alive)
        yield Lease(self.worker, self.load, digest=self.digest)

    async def worker(self):
        raise AssertionError("nobody runs anything here")

    def unload(self, card):
        self.unloaded.append(card)

    def check(self, case, policies):
        if self.refusal is not None:
            raise self.refusal

    async def run(self, order, case, lease, policies, *, transcript):
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


@pytest.mark.parametrize("tenant", ["", "team"])
async def test_what_is_read_for_a_request_belongs_to_its_tenant(tenant):
    parts: Any = Parts()
    who = replace(asker("c", load()), caller=Caller("c", tenant=tenant))
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    async with dispatcher.open(GenerationRequest(model="m", text="x"), who) as bursts:
        assert [burst async for burst in bursts] == []
    (frame,) = FrameReader().feed(parts.orders[0].frame(1, None))
    generate: Any = decode_down(frame)
    assert generate.owner == tenant


async def test_a_worker_is_told_the_trace_that_its_work_is_in():
    parts: Any = Parts()
    await opened(parts, Sampling())
    order = parts.orders[0]
    (frame,) = FrameReader().feed(order.frame(1, None, "c" * 16))
    untraced: Any = decode_down(frame)
    assert untraced.trace == ""
    context = TraceContext("a" * 32, "b" * 16, sampled=True)
    order.story.trace = Trace(context, None, "/api/chat", "ollama", 0.0)
    (frame,) = FrameReader().feed(order.frame(1, None, "c" * 16))
    traced: Any = decode_down(frame)
    assert traced.trace == f"00-{'a' * 32}-{'c' * 16}-01"


async def test_one_that_takes_text_at_once_takes_that_of_one_generation():
    parts: Any = Parts()
    who = replace(asker("c", load()), push=lambda burst: True)
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    request = GenerationRequest(model="m", text="x")
    async with dispatcher.open(request, who) as bursts:
        assert [burst async for burst in bursts] == []
    async with dispatcher.open_all((request, request), who) as numbered:
        assert [burst async for burst in numbered] == []
    assert [order.push for order in parts.orders] == [who.push, None, None]


async def test_an_order_knows_what_computes_it():
    parts = Parts()
    await opened(parts, Sampling())
    assert parts.orders[0].fingerprint == fingerprint_of(parts.card)


async def test_an_answer_is_known_by_the_files_that_were_loaded_whatever_the_catalogue_knew():
    """Once it knows them, too, whoever comes back goes on; what is not so its worker tells."""
    parts: Any = Parts()
    parts.digest, headway = "2" * 64, Headway()
    dispatcher = Dispatcher(parts, Admission(ManualClock()), parts, parts, clock=ManualClock())
    request, who = GenerationRequest(model="m", text="x"), asker("c", load())
    for _ in range(3):
        async with dispatcher.open(request, who, headway) as bursts:
            assert [burst async for burst in bursts] == []
        parts.card = replace(parts.card, digest=parts.digest)
    assert {order.fingerprint for order in parts.orders} == {fingerprint_of(parts.card)}
    parts.card = replace(parts.card, digest="3" * 64)
    with pytest.raises(ResumeExpired):
        await dispatcher.open(request, who, headway).__aenter__()


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


@pytest.mark.parametrize("stays", [True, False])
async def test_who_waited_for_what_an_edit_cannot_have_is_served_as_before(*, stays: bool) -> None:
    """In the one slot that it has, and by nothing of the model that does not serve."""

    class Edited(Parts):
        @asynccontextmanager
        async def lease(self, card, keep_alive, policies):
            if card.kv_bits:
                if stays:
                    self.card = replace(card, kv_bits=0, held="no")
                raise ModelLoadFailed("no")
            yield Lease(self.worker)

    parts: Any = Edited()
    parts.card = replace(parts.card, kv_bits=8)
    admission, policies = Admission(ManualClock()), load()
    (before,) = admission.rate_states(Caller("c"), policies)
    if not stays:
        with pytest.raises(ModelLoadFailed):
            await opened(parts, Sampling(), admission)
        return
    await opened(parts, Sampling(), admission)
    (after,) = admission.rate_states(Caller("c"), policies)
    assert before.remaining - after.remaining == 1
    assert admission.active == 0
    ((order,), (case,)) = parts.orders, parts.cases
    assert case.card is parts.card
    assert order.fingerprint == fingerprint_of(parts.card)


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


# -- who asks, and for how much


TENANT = "max_output: 20, max_context: 100, max_keep_alive: 1m, unload: false, models: [m]"


@pytest.fixture
def tenants(tmp_path: Path) -> PolicySet:
    text = f"tenants: {{agents: {{{TENANT}}}, other: {{models: [else]}}}}\n"
    return load(write_policies(tmp_path, {"clients": text}))


def of_tenant(tenant: str, policies: PolicySet, **more: Any) -> Asker:
    caller = Caller("10.0.0.1", "k", tenant)
    return Asker(caller, policies, lambda rule: None, untold(tenant), **more)


class Asked(Admission):
    """Remembers who asked."""

    def __init__(self, policies: PolicySet) -> None:
        super().__init__(ManualClock(), policies)
        self.applicants: list[Any] = []
        self.tickets: list[Any] = []

    @asynccontextmanager
    async def admit(self, applicant, *told, **more):
        self.applicants.append(applicant)
        async with super().admit(applicant, *told, **more) as ticket:
            self.tickets.append(ticket)
            yield ticket


async def test_an_applicant_is_all_that_is_known_of_a_call(tenants: PolicySet) -> None:
    parts: Any = Parts()
    parts.card = replace(parts.card, name="copy", copy_of="m")
    admission = Asked(tenants)
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    ask: dict[str, Any] = {
        "model": "copy",
        "text": "x" * 80,
        "priority": "low",
        "user": "u",
        "max_tokens": 10,
    }
    requests = [GenerationRequest(**ask), GenerationRequest(**ask)]
    someone = of_tenant("agents", tenants)
    async with dispatcher.open_all(requests, someone):
        someone.story.prompt_tokens, someone.story.completion_tokens = 5, 6
    (one,) = admission.applicants
    assert (one.caller, one.policies) == (someone.caller, tenants)
    assert (one.model, one.called, one.user, one.rated) == ("m", "copy", "u", True)
    assert (one.priority, one.cost) == ("low", 2 * (20 + 10))
    assert admission.tickets[0].tokens == 11
    asks_for_more = of_tenant("agents", tenants, priority="high")
    async with dispatcher.open(requests[0], asks_for_more):
        pass
    assert admission.applicants[1].priority == "high"


async def test_what_a_tenant_may_is_in_its_orders(tenants: PolicySet) -> None:
    parts: Any = Parts()
    admission = Admission(ManualClock(), tenants)
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    request = GenerationRequest(model="m", text="x", keep_alive=3600.0)
    for tenant in ("agents", ""):
        async with dispatcher.open(request, of_tenant(tenant, tenants)) as bursts:
            assert [burst async for burst in bursts] == []
    bounded, free = parts.orders
    assert (bounded.max_output, bounded.context) == (20, 100)
    assert bounded.context_key == "clients.tenants.agents.max_context"
    assert (free.max_output, free.context, free.context_key) == (8192, 512, "")
    assert parts.kept == [60.0, 3600.0]


async def test_a_model_that_a_tenant_may_not_use_is_neither_run_nor_loaded_nor_told_of(
    tenants: PolicySet,
) -> None:
    parts: Any = Parts()
    admission = Admission(ManualClock(), tenants)
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    someone = of_tenant("other", tenants)
    for want in ("answer", "embedding", "prompt"):
        request = GenerationRequest(model="m", want=want, text="x")
        with pytest.raises(Forbidden):
            async with dispatcher.open(request, someone):
                pass
    with pytest.raises(Forbidden):
        await dispatcher.load("m", None, tenants, someone.caller)
    with pytest.raises(Forbidden):
        await dispatcher.unload("m", tenants, someone.caller)
    assert (parts.kept, parts.unloaded) == ([], [])
    (state,) = admission.rate_states(someone.caller, tenants)
    assert state.remaining == state.requests


async def test_loading_and_unloading_are_rights_but_of_an_administrator(
    tenants: PolicySet,
) -> None:
    parts: Any = Parts()
    dispatcher = Dispatcher(
        parts, Admission(ManualClock(), tenants), parts, parts, clock=ManualClock()
    )
    agent = Caller("10.0.0.1", "k", "agents")
    for caller in (agent, None):
        await dispatcher.load("m", 3600.0, tenants, caller)
        await dispatcher.unload("m", tenants, caller)
    assert parts.kept == [60.0, 3600.0]
    assert len(parts.unloaded) == 1


@pytest.mark.parametrize(
    ("asked", "cost"),
    [
        ({"text": "x" * 400, "max_tokens": 10}, 100 + 10),
        ({"text": "x" * 400}, 100 + 412),
        ({"token_ids": (1,) * 7, "max_tokens": 2}, 7 + 2),
        ({"messages": (Message("user", "x" * 40), Message("user", "x" * 40)), "max_tokens": 1}, 21),
        ({"text": "x" * 9999, "max_tokens": 10}, 512),
        ({"text": "x" * 40, "want": "embedding"}, 10),
        ({"text": "", "max_tokens": 1, "tools": ({"a": "x" * 40},)}, 13 + 1),
    ],
)
async def test_what_a_request_is_expected_to_take(asked: Any, cost: float) -> None:
    """Its context is 512 tokens, and an answer whose length is not said is expected to be long."""
    parts: Any = Parts()
    parts.card = replace(parts.card, capabilities=("completion", "embedding", "tools"))
    admission = Asked(load())
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    async with dispatcher.open(GenerationRequest(model="m", **asked), asker("c", load())):
        pass
    assert admission.applicants[0].cost == cost


async def test_who_waits_for_a_slot_is_told_and_holds_no_model() -> None:
    parts: Any = Parts()
    policies = policies_of(max_in_flight=1, max_waiting=1)
    admission = Admission(ManualClock(), policies)
    dispatcher = Dispatcher(parts, admission, parts, parts, clock=ManualClock())
    request, told = GenerationRequest(model="m", text="x"), list[Any]()

    async def wait() -> None:
        async with dispatcher.open(request, of_tenant("b", policies, on_wait=told.append)):
            pass

    async with dispatcher.open(request, asker("a", policies)):
        waits = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        assert [view.position for view in told] == [1]
        assert len(parts.kept) == 1
    await waits
    assert len(parts.kept) == 2


async def test_a_call_counts_as_arriving_until_it_asks_for_a_slot():
    judged = asyncio.Event()

    async def judge(request, client):
        await judged.wait()

    parts: Any = Parts()
    dispatcher = Dispatcher(
        parts, Admission(ManualClock()), parts, parts, clock=ManualClock(), check_grammar=judge
    )

    async def arrives() -> int:
        request = GenerationRequest(model="m", text="x")
        async with dispatcher.open(request, asker("c", load())):
            return dispatcher.arriving

    task = asyncio.create_task(arrives())
    await asyncio.sleep(0)
    assert dispatcher.arriving == 1
    judged.set()
    assert await task == 0
    gone = asyncio.create_task(arrives())
    judged.clear()
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert dispatcher.arriving == 0


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ({"name": "b", "path": "/b"}, "was begun by model 'm', and what its client calls so"),
        ({"digest": "1" * 64}, "model 'm' has changed since"),
    ],
    ids=["its name leads elsewhere", "its files are others"],
)
def test_who_comes_back_is_told_what_became_of_the_model(later, told):
    headway, card = Headway(), Parts().card
    headway.begin(card, [Sampling()], lambda: 7)
    headway.begin(card, [Sampling()], lambda: 7)
    with pytest.raises(ResumeExpired, match=told):
        headway.begin(replace(card, **later), [Sampling()], lambda: 7)
