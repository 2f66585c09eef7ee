"""The events of a response: OpenAI's own package validates them and folds them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from mlxd.core.errors import (
    ContextExceeded,
    InvalidRequest,
    MlxdError,
    PolicyLine,
    RateLimited,
    RequestQuarantined,
    WorkerCrashed,
)
from mlxd.core.events import Finished, ReasoningDelta, Started, TextDelta, TokenLogprob, ToolCall
from mlxd.dialects.openai import ResponsesCodec

Json = dict[str, Any]
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CODEC = ResponsesCodec()
BODY: Json = {"model": "m", "input": "hi"}
NOW = 1_700_000_002.5
STOP = Finished("stop", 7, 5, cached_tokens=3, reasoning_tokens=2)
LENGTH = Finished("length", 7, 5)
PARIS = ToolCall("look", {"at": "Paris"})


def told(*events: Any, **body: Any) -> list[Json]:
    """The events for a generation, each valid, numbered, and named twice."""
    encoder = CODEC.encoder(CODEC.parse(BODY | body, id="abc", now=1_700_000_000.0))
    return read(encoder.feed([Started(7), *events], NOW))


def read(stream: bytes) -> list[Json]:
    found = []
    for number, record in enumerate(stream.decode().split("\n\n")[:-1]):
        name, data = record.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENTS.validate_python(listed(event))
        found.append(event)
    return found


def listed(event: Json) -> Json:
    """With a code that the package's types have: OpenAI's API says one for a prompt that is too
    long which they lack, and its clients look for it.
    """
    error = event.get("response", {}).get("error") or {}
    if error.get("code") != "context_length_exceeded":
        return event
    known = error | {"code": "invalid_prompt"}
    return event | {"response": event["response"] | {"error": known}}


def folded(events: list[Json]) -> Response:
    """What the package's stream helper makes of them."""
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(EVENTS.validate_python(event))
    assert state._completed_response is not None
    return state._completed_response


def types_of(events: list[Json]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_recorded_generations_are_valid_and_fold(events) -> None:
    found = told(*events[1:], include=["message.output_text.logprobs"])
    last = found[-1]
    if last["type"] == "response.completed":
        assert folded(found).id == last["response"]["id"] == "resp_abc"
    else:
        assert last["type"] == "response.incomplete"
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]


def test_the_order_of_events() -> None:
    found = told(ReasoningDelta("Hm."), TextDelta("a"), TextDelta("b"), PARIS, STOP)
    assert types_of(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    indexes = [event["output_index"] for event in found if "output_index" in event]
    assert indexes == sorted(indexes)
    assert set(indexes) == {0, 1, 2}


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    found = told(TextDelta("a"), PARIS, TextDelta("b"), STOP)
    output = folded(found).output
    assert [item.type for item in output] == ["message", "function_call", "message"]
    assert len({item.id for item in output}) == 3


def test_white_space_is_no_message_and_parts_no_calls() -> None:
    """Models write line breaks between their calls; read again, those are still one turn's."""
    events = told(
        *(
            ReasoningDelta("hm"),
            TextDelta("\n"),
            TextDelta("\n"),
            PARIS,
            TextDelta("\n"),
            PARIS,
            STOP,
        )
    )
    thought, *calls = folded(events).output
    assert thought.type == "reasoning"
    assert [call.type for call in calls] == ["function_call", "function_call"]
    items = [call.to_dict() for call in calls]
    given = [
        {"type": "function_call_output", "call_id": i["call_id"], "output": "x"} for i in items
    ]
    again = CODEC.parse(BODY | {"input": [*items, *given]}, id="abc", now=0.0).request
    assert [len(turn.tool_calls) for turn in again.messages or ()] == [2, 0, 0]


def test_white_space_comes_with_what_follows_it() -> None:
    scored = TokenLogprob(" ", b" ", -1.0)
    logprobs = {"include": ["message.output_text.logprobs"]}
    for text in (["\n", " a"], ["\n ", "", "a"], [" ", "\n"]):
        pieces = [TextDelta(piece, (scored,)) for piece in text]
        response = folded(told(*pieces, STOP, **logprobs))
        assert response.output_text == "".join(text)
        (message,) = response.output
        assert message.type == "message"
        (part,) = message.content
        assert part.type == "output_text"
        assert len(part.logprobs or ()) == len(text)


def test_a_response_says_again_what_was_asked() -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
    last = told(
        TextDelta("x"),
        STOP,
        instructions="Be short.",
        max_output_tokens=50,
        metadata={"a": "b"},
        temperature=0.5,
        tools=[tool],
        tool_choice={"type": "function", "name": "look"},
        parallel_tool_calls=False,
        store=False,
        user="u",
        reasoning={"effort": "low"},
        service_tier="auto",
        truncation="auto",
    )[-1]["response"]
    assert last["instructions"] == "Be short."
    assert last["max_output_tokens"] == 50
    assert last["metadata"] == {"a": "b"}
    assert (last["temperature"], last["top_p"]) == (0.5, 1.0)
    assert last["tools"] == [tool | {"description": None}]
    assert last["tool_choice"] == {"type": "function", "name": "look"}
    assert last["parallel_tool_calls"] is False
    assert last["store"] is False
    assert (last["user"], last["service_tier"]) == ("u", "default")
    assert last["reasoning"] == {"effort": "low", "summary": None}
    assert last["truncation"] == "disabled"
    assert last["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    assert last["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }
    assert (last["created_at"], last["completed_at"]) == (1_700_000_000, 1_700_000_002)


def test_an_answer_that_is_cut_is_incomplete() -> None:
    found = told(TextDelta("x"), LENGTH)
    last = found[-1]["response"]
    assert types_of(found)[-1] == last["status"] == "incomplete"
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["completed_at"] is None
    assert last["output"][0]["status"] == "incomplete"


def test_nothing_said_is_an_empty_message() -> None:
    found = told(STOP)
    assert folded(found).output_text == ""
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["message"]


def test_cut_while_it_thought_there_is_no_message() -> None:
    output = told(ReasoningDelta("Hm"), LENGTH)[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in output] == [("reasoning", "incomplete")]


def test_reasoning_is_sealed_where_that_is_asked_for() -> None:
    plain = told(ReasoningDelta("Hm."), TextDelta("x"), STOP)[-1]["response"]["output"][0]
    assert plain["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert "encrypted_content" not in plain
    body = {"include": ["reasoning.encrypted_content"]}
    item = told(ReasoningDelta("Hm."), TextDelta("x"), STOP, **body)[-1]["response"]["output"][0]
    bare = {"type": "reasoning", "summary": [], "encrypted_content": item["encrypted_content"]}
    said = {"role": "user", "content": "go on"}
    request = CODEC.parse(BODY | {"input": [bare, said]}, id="b", now=0.0).request
    assert request.messages is not None
    assert request.messages[0].thinking == "Hm."


def test_logprobs_belong_to_the_text_alone() -> None:
    def one(token: str) -> tuple[TokenLogprob, ...]:
        return (TokenLogprob(token, token.encode(), -0.5, ((token, token.encode(), -0.5),)),)

    events = (
        ReasoningDelta("Hm", one("Hm")),
        TextDelta("", one("held")),
        TextDelta("text", one("text")),
        STOP,
    )
    found = told(*events, top_logprobs=1)
    entries = found[-1]["response"]["output"][1]["content"][0]["logprobs"]
    assert [entry["token"] for entry in entries] == ["held", "text"]
    assert len(entries[0]["top_logprobs"]) == 1
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [entry["token"] for entry in deltas[0]["logprobs"]] == ["held", "text"]
    assert found[-1]["response"]["top_logprobs"] == 1
    assert b'"logprob"' not in json.dumps(told(*events)).encode()


def test_a_custom_tool_is_called_with_text() -> None:
    tools = [{"type": "custom", "name": "run"}]
    found = told(ToolCall("run", {"input": "ls"}), STOP, tools=tools)
    (item,) = found[-1]["response"]["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "run", "ls")
    assert types_of(found)[3:5] == ["custom_tool_call_input.delta", "custom_tool_call_input.done"]
    assert folded(found).output[0].type == "custom_tool_call"


def test_a_call_of_a_namespace_names_it() -> None:
    inner = {"type": "function", "name": "read"}
    tools = [{"type": "namespace", "name": "files", "description": "", "tools": [inner]}]
    (item,) = told(ToolCall("files__read", {}), STOP, tools=tools)[-1]["response"]["output"]
    assert (item["name"], item["namespace"], item["arguments"]) == ("read", "files", "{}")


def test_a_tool_nobody_offered_is_told_as_it_was_called() -> None:
    (item,) = told(PARIS, STOP)[-1]["response"]["output"]
    assert (item["type"], item["name"]) == ("function_call", "look")
    assert item["call_id"].startswith("call_")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerCrashed("it died"), "server_error"),
        (RateLimited("slow"), "rate_limit_exceeded"),
        (ContextExceeded("long"), "context_length_exceeded"),
        (InvalidRequest("no"), "invalid_prompt"),
        (RequestQuarantined("workers died of it"), "invalid_prompt"),
    ],
)
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "at once"])
def test_a_failure_is_the_last_event(error: MlxdError, code: str, begun: bool) -> None:
    encoder = CODEC.encoder(CODEC.parse(BODY, id="abc", now=0.0))
    stream = encoder.feed([Started(1), TextDelta("half")], NOW) if begun else b""
    error.policy = PolicyLine("supervision.replay", "0", "supervision.yaml:3")
    found = read(stream + encoder.fail(error))
    assert types_of(found)[:2] == ["created", "in_progress"]
    raised, last = found[-2:]
    assert raised["type"] == "error", "OpenAI's libraries raise this, and not the next"
    assert raised["code"] == raised["error"]["code"] == code
    assert raised["message"] == raised["error"]["message"] == last["response"]["error"]["message"]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == code
    assert "supervision.yaml:3" in last["response"]["error"]["message"]
    texts = [item["content"][0]["text"] for item in last["response"]["output"]]
    assert texts == (["half"] if begun else [])
    assert encoder.whole is None
