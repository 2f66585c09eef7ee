"""What OpenAI's chat bodies mean, and its chunks."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import Finished, ReasoningDelta, Started, TextDelta, ToolCall
from mlxd.core.request import CalledTool, GenerationRequest, Message, Sampling
from mlxd.dialects.openai import ChatCodec

USER = {"role": "user", "content": "hi"}


def parse(*messages: Any, **body: Any) -> GenerationRequest:
    body = {"model": "m", "messages": list(messages or (USER,))} | body
    return ChatCodec().parse(body, id="abc", now=5.0).request


def test_the_least_that_is_valid() -> None:
    assert parse() == GenerationRequest(
        model="m",
        messages=(Message("user", "hi"),),
        fallback=Sampling(temperature=1.0, top_p=1.0),
        stream=False,
    )


def test_every_sampling_parameter_arrives() -> None:
    request = parse(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"5": -100, "0": 1.5},
        seed=-1,
        keep_alive="-1m",
    )
    assert request.sampling == Sampling(
        temperature=0.0,
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        repeat_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((5, -100.0), (0, 1.5)),
        seed=2**63 - 1,
    )
    assert request.keep_alive == math.inf


def test_null_is_absent_everywhere() -> None:
    names = (
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "tools",
        "tool_choice",
        "logprobs",
        "stream",
    )
    more = (
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "response_format",
        "logit_bias",
    )
    rest = ("reasoning", "reasoning_effort", "chat_template_kwargs", "user", "metadata", "audio")
    old = ("functions", "function_call", "parallel_tool_calls", "service_tier")
    vllm = ("guided_json", "guided_regex", "guided_choice", "structured_outputs", "min_tokens")
    assert parse(**dict.fromkeys((*names, *more, *rest, *old, *vllm, "ignore_eos"))) == parse()


def test_what_is_not_ours_is_ignored() -> None:
    assert parse(user=5, metadata=[], store="x", prediction=1, verbosity=2, nonsense={}) == parse()


def test_the_tier_is_said_where_one_was_asked_for() -> None:
    """There is one: whatever was asked for, that is what it was served in."""
    first, *_ = chunks(Started(5), END, service_tier="priority")
    assert first["service_tier"] == "default"
    assert "service_tier" not in chunks(Started(5), END)[0]


def test_how_an_answer_may_end() -> None:
    request = parse(min_tokens=5, ignore_eos=True, max_tokens=5)
    assert (request.min_tokens, request.ignore_eos, request.max_tokens) == (5, True, 5)
    assert (parse().min_tokens, parse().ignore_eos) == (0, False)


def test_padded_chunks_tell_nothing_of_their_texts_length() -> None:
    codec = ChatCodec()
    body = {"model": "m", "messages": [USER], "stream_options": {"include_obfuscation": True}}
    encoder = codec.encoder(codec.parse(body, id="abc", now=5.5))
    encoder.feed([Started(5), TextDelta("")], 9.0)
    for length in range(130):
        chunk = encoder.feed([TextDelta("x" * length)], 9.0)
        data = json.loads(chunk.removeprefix(b"data: "))
        assert data["choices"][0]["delta"] == {"content": "x" * length}
        assert set(data["obfuscation"]) <= {"0"}
        assert (len(chunk) - len(b"data: \n\n")) % 64 == 0


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ({"max_tokens": 5.0}, 5),
    ],
)
def test_max_completion_tokens_wins(body: dict[str, int], limit: int | None) -> None:
    assert parse(**body).max_tokens == limit


@pytest.mark.parametrize(
    ("stop", "meant"),
    [("END", ("END",)), ("", ()), (["a", "b"], ("a", "b")), ([""], ()), ([], ())],
)
def test_stop(stop: Any, meant: tuple[str, ...]) -> None:
    assert parse(stop=stop).stop == meant


def test_roles_and_parts() -> None:
    text = {"type": "text", "text": "a"}
    request = parse(
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [text, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "function", "name": "f", "content": "1"},
    )
    assert request.messages == (
        Message("system", "d"),
        Message("user", "a\nb"),
        Message("assistant", "No."),
        Message("tool", "1", tool_name="f"),
    )


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_an_answer_that_was_cut_while_it_thought_may_come_back_without_content(name: str) -> None:
    request = parse({"role": "assistant", "content": None, "refusal": None, name: "Hmm"})
    assert request.messages == (Message("assistant", thinking="Hmm"),)


def test_a_tools_answer_finds_the_name_of_what_was_called() -> None:
    function = {"name": "f", "arguments": '{"a": 1e2, "b": 123456789012345678901}'}
    request = parse(
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]},
    )
    arguments = {"a": 100.0, "b": 123456789012345678901.0}
    assert request.messages == (
        Message("assistant", tool_calls=(CalledTool("f", arguments, "c1"),)),
        Message("tool", "2", tool_name="f", tool_call_id="c1"),
    )
    assert type(request.messages[0].tool_calls[0].arguments["b"]) is float


def test_arguments_may_be_as_deep_as_a_body() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":' * 64 + "1" + "}" * 64}}
    assert parse({"role": "assistant", "tool_calls": [call]}).messages


def test_biases_are_bounded() -> None:
    biases = {str(token): 1 for token in range(1025)}
    with pytest.raises(InvalidRequest, match="logit_bias takes at most 1024 tokens"):
        parse(logit_bias=biases)
    del biases["0"]
    assert len(parse(logit_bias=biases).sampling.logit_bias or ()) == 1024


def test_old_function_calls_in_a_conversation() -> None:
    call = {"name": "f", "arguments": ""}
    (message,) = parse({"role": "assistant", "function_call": call}).messages or ()
    assert message.tool_calls == (CalledTool("f", {}),)


def test_arguments_are_bounded_over_the_whole_conversation() -> None:
    call = {"function": {"name": "f", "arguments": '{"a":[' + "0," * 1000 + "0]}"}}
    parse({"role": "assistant", "tool_calls": [call] * 100})
    with pytest.raises(InvalidRequest, match="too many values"):
        parse({"role": "assistant", "tool_calls": [call] * 200})


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "xhigh"}, "max"),
        ({"reasoning": {"effort": "high"}}, "high"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "low"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}, "low"),
    ],
)
def test_thinking(body: dict[str, Any], think: bool | str | None) -> None:
    assert parse(**body).think == think


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_penalties_look_at_all_of_the_answer(name: str) -> None:
    assert parse(**{name: 1.5}).fallback.repeat_last_n == -1
    assert parse(presence_penalty=0, repetition_penalty=1).fallback.repeat_last_n is None


def test_template_options_pass() -> None:
    assert parse(chat_template_kwargs={"style": "x"}).template_options == {"style": "x"}


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 5}, 5),
        ({"top_logprobs": 5}, None),
    ],
)
def test_logprobs(asked: dict[str, Any], meant: int | None) -> None:
    assert parse(**asked).logprobs == meant


def chunks(*events: Any, **body: Any) -> list[Any]:
    codec = ChatCodec()
    call = codec.parse({"model": "m", "messages": [USER], "stream": True} | body, id="abc", now=5.5)
    lines = codec.encoder(call).feed(events, 9.0).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


END = Finished("stop", 5, 2, cached_tokens=3)


def test_a_stream_opens_with_the_role_and_closes_with_the_reason() -> None:
    first, piece, last = chunks(Started(5), TextDelta("x"), END)
    assert {chunk["id"] for chunk in (first, piece, last)} == {"chatcmpl-abc"}
    assert {chunk["created"] for chunk in (first, piece, last)} == {5}
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert piece["choices"][0]["delta"] == {"content": "x"}
    assert last["choices"][0]["delta"] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in (first, piece, last)]
    assert reasons == [None, None, "stop"]
    assert "usage" not in last


@pytest.mark.parametrize("first", [ToolCall("f", {}), ReasoningDelta("hm")])
def test_what_calls_or_thinks_first_opens_no_text(first: Any) -> None:
    """As OpenAI: content that is empty, and not null, is a text for the AI SDK."""
    opening, *_ = chunks(Started(5), first, END)
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": None}


@pytest.mark.parametrize("options", [{}, None, {"include_usage": False}, {"include_usage": None}])
def test_usage_is_sent_only_when_asked_for(options: Any) -> None:
    assert all("usage" not in chunk for chunk in chunks(Started(5), END, stream_options=options))


def test_usage_comes_last_and_alone() -> None:
    *others, last = chunks(Started(5), END, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_tool_calls_are_whole_and_numbered() -> None:
    calls = (ToolCall("f", {"ä": 1}), ToolCall("g", {}))
    *pieces, last = chunks(Started(5), *calls, END)[1:]
    first, second = (piece["choices"][0]["delta"]["tool_calls"][0] for piece in pieces)
    assert (first["index"], second["index"]) == (0, 1)
    assert first["type"] == "function"
    assert first["function"] == {"name": "f", "arguments": '{"ä":1}'}
    assert first["id"] != second["id"]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_has_both_names_and_never_stands_with_content() -> None:
    delta = chunks(Started(5), ReasoningDelta("hm"), END)[1]["choices"][0]["delta"]
    assert delta == {"reasoning": "hm", "reasoning_content": "hm"}


def test_a_picture_that_a_tool_gives_is_named_and_not_read() -> None:
    """It stays in the conversation: refused, it would end that."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    given = {"role": "tool", "tool_call_id": "c1", "content": [picture]}
    found = parse({"role": "assistant", "tool_calls": [call]}, given).messages
    assert found is not None
    assert found[-1].content == "[image_url: this model reads text only]"
