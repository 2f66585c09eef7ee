"""An answer is kept before its client has it; what it goes on from is looked up for its owner."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import BaseRequest, RequestKey

from mlxd.control.archive import Archive, Kept
from mlxd.control.stories import Stories
from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import EarlierResponseNotFound, InvalidRequest, WorkerCrashed
from mlxd.core.events import Burst, Finished, Started, TextDelta
from mlxd.core.request import GenerationRequest
from mlxd.core.story import untold
from mlxd.core.threads import Threads
from mlxd.dialects import openai
from mlxd.policy.load import Override, load
from mlxd.policy.policy_set import PolicySet
from mlxd.server import generate, responses
from mlxd.server.edge import CALLER, ID, MARKS, POLICIES, STORY, Marks
from mlxd.server.intake import DIGEST, SIZE
from mlxd.server.responses import Respond, _Exchange
from mlxd.server.resume import Resumption

Json = dict[str, Any]
BODY: RequestKey[Json] = RequestKey("body of a test", dict)
SAID: Sequence[Burst] = (
    [Started(3)],
    [TextDelta("one ")],
    [TextDelta("two"), Finished("stop", 3, 2)],
)


class Machine:
    """A daemon's parts, with a dispatcher that says what it is told to."""

    def __init__(self, **overrides: str) -> None:
        self.policies = policies(**overrides)
        self.archive = Archive(ManualClock(), self.policies)
        self.asked: list[GenerationRequest] = []
        self.bursts: Sequence[Burst] = SAID
        self.parts: Any = SimpleNamespace(
            archive=self.archive,
            resumption=Resumption(ManualClock(), self.policies),
            stories=Stories(self.policies),
            clock=ManualClock(),
            dispatcher=SimpleNamespace(open=self._open),
            metrics=SimpleNamespace(refused=lambda code: None),
            rejections=None,
        )

    @asynccontextmanager
    async def _open(
        self, request: GenerationRequest, asker: Any, headway: Any
    ) -> AsyncIterator[AsyncIterator[Burst]]:
        self.asked.append(request)

        async def bursts() -> AsyncIterator[Burst]:
            for burst in self.bursts:
                yield burst

        yield bursts()

    async def ask(self, client: str = "127.0.0.1", **body: Any) -> Json:
        request = request_of(self.policies, client, {"model": "m", "input": "hi"} | body)
        answer: Any = await Respond(self.parts, openai.ResponsesCodec())(request)
        whole: Json = json.loads(answer.body)
        return whole


def policies(**overrides: str) -> PolicySet:
    chosen = [
        Override(key if "." in key else f"limits.responses.{key}", text, "a test")
        for key, text in overrides.items()
    ]
    return load(None, chosen)


def request_of(policies: PolicySet, client: str, body: Json) -> BaseRequest:
    transport = SimpleNamespace(
        get_extra_info=lambda name, default=None: (client, 1) if name == "peername" else default
    )
    request = make_mocked_request("POST", "/v1/responses", transport=transport)
    request[ID] = "1"
    request[POLICIES] = policies
    request[MARKS] = Marks(lambda _: None)
    request[CALLER] = Caller(client)
    request[STORY] = untold(client)
    request[BODY] = body
    request[DIGEST], request[SIZE] = b"", 0
    return request


@pytest.fixture(autouse=True)
def bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_json(request: Any, policies: PolicySet, read: Any) -> Any:
        return read(request[BODY])

    monkeypatch.setattr(responses, "read_json", read_json)
    monkeypatch.setattr(generate, "note_quota", lambda *_: None)


async def test_what_is_kept_is_what_was_answered() -> None:
    machine = Machine()
    whole = await machine.ask()
    kept = machine.archive.get(whole["id"], "127.0.0.1")
    assert kept is not None
    assert json.loads(kept.response) == whole
    (item,) = json.loads(kept.said)
    assert item["content"] == [{"type": "input_text", "text": "hi"}]


async def test_one_with_log_probabilities_is_kept_by_the_thread_that_all_others_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is rendered by another one, and an archive has no lock."""
    machine, kept_by = Machine(), list[int]()
    keep = machine.archive.keep

    def noted(kept: Kept) -> None:
        kept_by.append(threading.get_ident())
        keep(kept)

    monkeypatch.setattr(machine.archive, "keep", noted)
    whole = await machine.ask(include=["message.output_text.logprobs"])
    assert kept_by == [threading.get_ident()]
    assert machine.archive.get(whole["id"], "127.0.0.1") is not None


async def test_want_of_a_thread_to_render_it_does_not_lose_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    machine = Machine()
    monkeypatch.setattr(generate, "_threads", Threads("numbers"))
    monkeypatch.setattr(threading.Thread, "start", none)
    whole = await machine.ask(include=["message.output_text.logprobs"])
    assert whole["status"] == "completed"


async def test_it_is_kept_before_its_last_event_goes_out() -> None:
    """A client may go on from it at once."""
    machine = Machine()
    call = openai.ResponsesCodec().parse({"model": "m", "input": "hi"}, id="abc", now=0.0)
    codec = _Exchange(machine.parts, openai.ResponsesCodec(), "me")._keeping
    encoder = codec.encoder(call)
    for burst in SAID[:-1]:
        encoder.feed(burst, 1.0)
    assert machine.archive.get("resp_abc", "me") is None
    assert b"response.completed" in encoder.feed(SAID[-1], 1.0)
    assert machine.archive.get("resp_abc", "me") is not None


async def test_a_stream_that_fails_or_is_left_is_not_kept() -> None:
    machine = Machine()
    call = openai.ResponsesCodec().parse({"model": "m", "input": "hi"}, id="abc", now=0.0)
    encoder = _Exchange(machine.parts, openai.ResponsesCodec(), "me")._keeping.encoder(call)
    encoder.feed(SAID[1], 1.0)
    encoder.fail(WorkerCrashed("it died"))
    assert len(machine.archive) == 0


async def test_it_goes_on_from_what_is_kept_turn_by_turn() -> None:
    machine = Machine()
    first = await machine.ask(instructions="Be brief.")
    second = await machine.ask(input="more", previous_response_id=first["id"])
    await machine.ask(input="even more", previous_response_id=second["id"])
    told = [[(m.role, m.content) for m in asked.messages or ()] for asked in machine.asked]
    assert told[1] == [("user", "hi"), ("assistant", "one two"), ("user", "more")]
    assert told[2] == [*told[1], ("assistant", "one two"), ("user", "even more")]
    kept = machine.archive.get(second["id"], "127.0.0.1")
    assert kept is not None
    assert [item["content"][0]["text"] for item in json.loads(kept.said)] == ["more"]


async def test_another_client_finds_nothing_to_go_on_from() -> None:
    machine = Machine()
    first = await machine.ask()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    with pytest.raises(EarlierResponseNotFound) as caught:
        await machine.ask("10.0.0.7", previous_response_id=first["id"])
    assert caught.value.policy is None
    with pytest.raises(InvalidRequest, match="not found"):
        await machine.ask("10.0.0.7", input=[reference])
    found = await machine.ask(input=[reference])
    assert found["status"] == "completed"
    assert machine.asked[-1].messages is not None
    assert machine.asked[-1].messages[0].content == "one two"


async def test_what_a_body_refers_to_is_as_long_as_a_body_may_be_at_most() -> None:
    machine = Machine(**{"server.http.max_body": "10kB"})
    first = await machine.ask(input="word " * 800)
    reference = {"id": first["id"].replace("resp", "msg") + "_in0"}
    await machine.ask(input=[reference] * 2)
    with pytest.raises(InvalidRequest, match="more than 10000 bytes") as caught:
        await machine.ask(input=[reference] * 3)
    assert caught.value.param == "input"
    assert caught.value.policy is not None
    assert caught.value.policy.key == "server.http.max_body"
    with pytest.raises(InvalidRequest) as caught:
        await machine.ask(input=[reference] * 2, previous_response_id=first["id"])
    assert caught.value.param == "input"


async def test_so_is_the_conversation_that_it_goes_on_from() -> None:
    """What answers repeat of the request does not count."""
    machine = Machine(**{"server.http.max_body": "10kB"})
    last: Json = {"id": None}
    for _ in range(3):
        settings = {"instructions": "i" * 9000, "previous_response_id": last["id"]}
        last = await machine.ask(input="word " * 700, **settings)
    with pytest.raises(InvalidRequest, match="more than 10000 bytes") as caught:
        await machine.ask(previous_response_id=last["id"])
    assert caught.value.param == "previous_response_id"
    assert len(machine.asked) == 3


async def test_one_that_was_forgotten_while_its_successor_ran_is_told_all_the_same() -> None:
    machine = Machine()
    first = await machine.ask()
    kept = machine.archive.get(first["id"], "127.0.0.1")
    assert kept is not None
    second = await machine.ask(previous_response_id=first["id"])
    machine.archive.remove(kept)
    third = await machine.ask(input="more", previous_response_id=second["id"])
    assert third["previous_response_id"] == second["id"]
    assert len(machine.asked[-1].messages or ()) == 5


async def test_policy_may_keep_none() -> None:
    machine = Machine(store="off")
    whole = await machine.ask(store=True)
    assert whole["store"] is False
    assert len(machine.archive) == 0
    with pytest.raises(EarlierResponseNotFound) as caught:
        await machine.ask(previous_response_id=whole["id"])
    assert caught.value.policy is not None
    assert caught.value.policy.key == "limits.responses.store"


async def test_the_client_may_have_it_not_kept() -> None:
    machine = Machine()
    await machine.ask(store=False)
    assert len(machine.archive) == 0


async def test_counting_tokens_keeps_nothing_and_asks_for_a_prompt() -> None:
    machine = Machine()
    first = await machine.ask()
    body = {"model": "m", "input": "more", "previous_response_id": first["id"]}
    request = request_of(machine.policies, "127.0.0.1", body)
    answer: Any = await Respond(machine.parts, openai.InputTokensCodec())(request)
    assert json.loads(answer.body) == {"object": "response.input_tokens", "input_tokens": 3}
    assert machine.asked[-1].want == "prompt"
    assert len(machine.asked[-1].messages or ()) == 3
    assert len(machine.archive) == 1
