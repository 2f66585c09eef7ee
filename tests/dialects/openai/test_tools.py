"""What a model is offered to call, and what it must."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import Burst, Completion, Finished, Started, TextDelta, ToolCall
from mlxd.core.request import GenerationRequest, ToolChoice
from mlxd.dialects.base import Call
from mlxd.dialects.openai import ChatCodec

CODEC = ChatCodec()
F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
G = {"type": "function", "function": {"name": "g"}}
OLD = [F["function"], G["function"]]
NAMED = {"type": "function", "function": {"name": "g"}}


def call_of(**body: Any) -> Call:
    usual = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return CODEC.parse(usual | body, id="abc", now=5.0)


def parse(**body: Any) -> GenerationRequest:
    return call_of(**body).request


def allowed(mode: str, *tools: Any) -> Any:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


@pytest.mark.parametrize(
    ("choice", "left", "meant"),
    [
        (None, (F, G), ToolChoice()),
        ("auto", (F, G), ToolChoice()),
        ("required", (F, G), ToolChoice(required=True)),
        ("none", (), ToolChoice()),
        (NAMED, (G,), ToolChoice(required=True, names=("g",))),
        (allowed("auto", F), (F,), ToolChoice(names=("f",))),
        (allowed("required", G, F, G), (F, G), ToolChoice(required=True, names=("g", "f"))),
    ],
)
def test_tool_choice(choice: Any, left: tuple[Any, ...], meant: ToolChoice) -> None:
    request = parse(tools=[F, G], tool_choice=choice)
    assert (request.tools, request.tool_choice) == (left, meant)


@pytest.mark.parametrize(
    ("body", "parallel"),
    [
        ({}, True),
        ({"parallel_tool_calls": True}, True),
        ({"parallel_tool_calls": None}, True),
        ({"parallel_tool_calls": False}, False),
        ({"parallel_tool_calls": False, "tool_choice": "required"}, False),
    ],
)
def test_one_call_at_most(body: dict[str, Any], parallel: bool) -> None:
    assert parse(tools=[F], **body).tool_choice.parallel is parallel


def test_a_refusal_does_not_repeat_any_length_of_a_name() -> None:
    with pytest.raises(InvalidRequest, match="not among the tools") as caught:
        parse(tools=[F], tool_choice={"type": "function", "function": {"name": "x" * 5000}})
    assert len(caught.value.message) < 200


def test_without_tools_there_is_nothing_to_choose() -> None:
    assert parse(parallel_tool_calls=False, tool_choice="auto", tools=[]) == parse()


@pytest.mark.parametrize(
    ("choice", "left", "meant"),
    [
        (None, (F, G), ToolChoice(parallel=False)),
        ("auto", (F, G), ToolChoice(parallel=False)),
        ("none", (), ToolChoice()),
        ({"name": "g"}, (G,), ToolChoice(required=True, names=("g",), parallel=False)),
    ],
)
def test_functions_are_tools_in_the_old_form(
    choice: Any, left: tuple[Any, ...], meant: ToolChoice
) -> None:
    call = call_of(functions=OLD, function_call=choice)
    assert (call.request.tools, call.request.tool_choice) == (left, meant)
    assert call.old_functions


@pytest.mark.parametrize(
    "body", [{"functions": []}, {"function_call": "auto"}, {"function_call": "none"}]
)
def test_the_old_form_of_nothing_says_nothing(body: dict[str, Any]) -> None:
    assert call_of(**body) == call_of()


class TestOldAnswers:
    ENDED = Finished("stop", 5, 2)
    MADE = (ToolCall("f", {"ä": 1}), ToolCall("g", {}))
    FUNCTION = {"name": "f", "arguments": '{"ä":1}'}  # noqa: RUF012 - read only

    def test_whole(self) -> None:
        answer = Completion(Started(5), tool_calls=list(self.MADE), finished=self.ENDED)
        (choice,) = CODEC.render(call_of(functions=OLD), [answer], 9.0)["choices"]
        assert choice["message"]["function_call"] == self.FUNCTION
        assert choice["message"]["content"] is None
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "function_call"

    def test_streamed(self) -> None:
        encoder = CODEC.encoder(call_of(functions=OLD, stream=True))
        lines = encoder.feed([Started(5), *self.MADE, self.ENDED], 9.0).split(b"\n\n")
        deltas = [json.loads(line[6:])["choices"][0] for line in lines[:-2]]
        assert [delta["delta"] for delta in deltas[1:]] == [{"function_call": self.FUNCTION}, {}]
        assert deltas[-1]["finish_reason"] == "function_call"

    def test_words_are_words(self) -> None:
        answer = Completion(Started(5), text="No.", finished=self.ENDED)
        (choice,) = CODEC.render(call_of(functions=OLD), [answer], 9.0)["choices"]
        assert choice["message"]["content"] == "No."
        assert "function_call" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_an_answer_that_was_cut_says_so_whatever_it_called() -> None:
    end = Finished("length", 5, 2)
    events: Burst = [Started(5), ToolCall("f", {}), TextDelta("and"), end]
    lines = CODEC.encoder(call_of(tools=[F])).feed(events, 9.0).split(b"\n\n")
    assert json.loads(lines[-3][6:])["choices"][0]["finish_reason"] == "length"
    answer = Completion(Started(5), "and", tool_calls=[ToolCall("f", {})], finished=end)
    (choice,) = CODEC.render(call_of(tools=[F]), [answer], 9.0)["choices"]
    assert choice["finish_reason"] == "length"
