"""Anthropic's blocks: what opens one, what closes it, and that whole and streamed agree."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.core.events import (
    Burst,
    Finished,
    GenerationEvent,
    Piece,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    collect,
)
from mlxd.dialects.anthropic import CountCodec, MessagesCodec
from mlxd.dialects.anthropic.content import content_of
from mlxd.dialects.base import Call
from tests.dialects.test_parity import events_of, fold_anthropic

BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "x"}],
}
CODEC = MessagesCodec()
CALL = CODEC.parse(BODY | {"thinking": {"type": "adaptive"}}, id="abc", now=0.0)
UNASKED = CODEC.parse(BODY, id="abc", now=0.0)
STARTED = Started(12, cached_tokens=4)
FINISHED = Finished("stop", 12, 5, cached_tokens=4, reasoning_tokens=2)
LOOK = ToolCall("look", {"at": 1})


def streamed(*parts: GenerationEvent, call: Call = CALL) -> bytes:
    return CODEC.encoder(call).feed([STARTED, *parts, FINISHED], 0.0)


def kinds(stream: bytes) -> list[str]:
    """In short: what each event does."""
    found = []
    for event in events_of(stream):
        inner = event.get("delta") or event.get("content_block") or {}
        found.append(inner.get("type") or event["type"])
    return found


def test_the_order_of_events() -> None:
    stream = streamed(ReasoningDelta("hm"), TextDelta("so"), TextDelta(" it is"), LOOK, LOOK)
    assert kinds(stream) == [
        "message_start",
        *("thinking", "thinking_delta", "signature_delta", "content_block_stop"),
        *("text", "text_delta", "text_delta", "content_block_stop"),
        *("tool_use", "input_json_delta", "content_block_stop"),
        *("tool_use", "input_json_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]


def test_the_start_counts_the_prompt_and_the_end_the_answer() -> None:
    first, *_, delta, _ = events_of(streamed(TextDelta("x")))
    asked = {
        "input_tokens": 12,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    assert first["message"] == {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": asked,
    }
    details = {"thinking_tokens": 2}
    assert delta["usage"] == asked | {"output_tokens": 5, "output_tokens_details": details}


def asking(block: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [block]}]}


def test_who_marks_what_is_to_be_cached_is_told_what_was() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    block = {"type": "text", "text": "x", **mark}
    tool = {"name": "look", "input_schema": {"type": "object"}, **mark}
    document = {"type": "document", "source": {"type": "content", "content": [block]}}
    result = {"type": "tool_result", "tool_use_id": "t"}
    for marked in (
        mark,
        {"system": [block]},
        {"tools": [tool]},
        asking(block),
        asking(result | mark),
        asking(result | {"content": [block]}),
        asking(document),
        asking(result | {"content": [document]}),
    ):
        call = CODEC.parse(BODY | marked, id="abc", now=0.0)
        first, *_, delta, _ = events_of(streamed(TextDelta("x"), call=call))
        for usage in (first["message"]["usage"], delta["usage"]):
            assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (8, 4)


def test_what_a_tool_takes_and_was_called_with_marks_nothing() -> None:
    named = {"cache_control": {"type": "object"}}
    tool = {"name": "look", "input_schema": {"type": "object", "properties": named}}
    called = {"type": "tool_use", "id": "t", "name": "look", "input": named}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    turns = [{"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
    call = CODEC.parse(BODY | {"tools": [tool], "messages": turns}, id="abc", now=0.0)
    first, *_ = events_of(streamed(TextDelta("x"), call=call))
    assert first["message"]["usage"]["cache_read_input_tokens"] == 0


def test_nothing_said_opens_no_block() -> None:
    assert kinds(streamed()) == ["message_start", "message_delta", "message_stop"]


def test_white_space_alone_opens_no_block() -> None:
    stream = streamed(ReasoningDelta("\n\n"), TextDelta("\n"), LOOK, TextDelta("\n"), LOOK)
    assert kinds(stream).count("tool_use") == 2
    assert "text" not in kinds(stream)
    assert "thinking" not in kinds(stream)


def test_white_space_comes_with_what_follows_it() -> None:
    message = fold_anthropic(streamed(TextDelta("\n"), TextDelta(" "), TextDelta("x")))
    assert message["content"] == [{"type": "text", "text": "\n x"}]


def test_thoughts_are_signed() -> None:
    signed = fold_anthropic(streamed(ReasoningDelta("a"), ReasoningDelta("b")))["content"][0]
    other = fold_anthropic(streamed(ReasoningDelta("ac")))["content"][0]
    assert signed["thinking"] == "ab"
    assert signed["signature"]
    assert signed["signature"] != other["signature"]


@pytest.mark.parametrize(
    ("finished", "called", "reason", "stop"),
    [
        (FINISHED, False, "end_turn", None),
        (replace(FINISHED, reason="length"), False, "max_tokens", None),
        (
            replace(FINISHED, reason="length", context_full=True),
            False,
            "model_context_window_exceeded",
            None,
        ),
        (
            replace(FINISHED, reason="length", context_full=True, completion_tokens=9),
            False,
            "max_tokens",
            None,
        ),
        (replace(FINISHED, stop_string="##"), False, "stop_sequence", "##"),
        (FINISHED, True, "tool_use", None),
        (replace(FINISHED, stop_string="##"), True, "tool_use", None),
        (replace(FINISHED, reason="length"), True, "max_tokens", None),
    ],
)
def test_why_it_ended(finished: Finished, called: bool, reason: str, stop: str | None) -> None:
    parts: list[Piece] = [LOOK] if called else [TextDelta("x")]
    stream = CODEC.encoder(CALL).feed([STARTED, *parts, finished], 0.0)
    message = fold_anthropic(stream)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, stop)


async def whole_of(burst: Burst, call: Any = CALL, codec: Any = CODEC) -> dict[str, Any]:
    async def bursts() -> AsyncIterator[Burst]:
        yield burst

    rendered: dict[str, Any] = codec.render(call, [await collect(bursts())], 0.0)
    return rendered


@pytest.mark.parametrize("stream", [False, True])
async def test_without_tokens_there_is_no_answer(stream: bool) -> None:
    """The prompt is told as text; it is not the answer."""
    call = CODEC.parse(BODY | {"max_tokens": 0, "stream": stream}, id="abc", now=0.0)
    burst: Burst = [STARTED, TextDelta("the prompt"), replace(FINISHED, completion_tokens=0)]
    message = await whole_of(burst, call)
    assert message == fold_anthropic(CODEC.encoder(call).feed(burst, 0.0))
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert message["usage"]["output_tokens"] == 0


async def test_a_count_is_of_the_whole_prompt() -> None:
    codec = CountCodec()
    call = codec.parse(BODY, id="abc", now=0.0)
    assert await whole_of([STARTED, TextDelta("p"), FINISHED], call, codec) == {"input_tokens": 12}


TEXTS = st.sampled_from(["", " ", "\n", "a", "b ", "\n\nc"])
PARTS = st.lists(
    st.builds(TextDelta, TEXTS) | st.builds(ReasoningDelta, TEXTS) | st.just(LOOK), max_size=12
)


def test_thoughts_that_nobody_asked_for_are_not_told() -> None:
    """A model may think whatever it is told; clients read text in the first block."""
    stream = streamed(ReasoningDelta("hm"), TextDelta("so"), call=UNASKED)
    message = fold_anthropic(stream)
    assert message["content"] == [{"type": "text", "text": "so"}]
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


@pytest.mark.parametrize("call", [CALL, UNASKED], ids=["asked", "unasked"])
@settings(max_examples=100, deadline=None, database=None)
@given(parts=PARTS)
def test_whatever_comes_whole_and_streamed_agree(call: Call, parts: Sequence[Piece]) -> None:
    whole = content_of(call, parts)
    assert fold_anthropic(streamed(*parts, call=call))["content"] == json.loads(json.dumps(whole))
    assert all(block.get("text", "x").strip() for block in whole)
