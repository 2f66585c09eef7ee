"""What Ollama's bodies mean."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlxd.core.request import CalledTool, Message
from mlxd.dialects.base import Call
from mlxd.dialects.ollama import ChatCodec, GenerateCodec

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def generate(**body: Any) -> Call:
    return GenerateCodec().parse({"model": "M:1b"} | body, id="abc", now=5.0)


def chat(*messages: Any, **body: Any) -> Call:
    return ChatCodec().parse(
        {"model": "M:1b", "messages": list(messages)} | body, id="abc", now=5.0
    )


def test_a_prompt_is_one_turn_of_the_user() -> None:
    call = generate(prompt="hi")
    assert (call.action, call.received, call.id) == ("generate", 5.0, "abc")
    assert call.request.model == "M:1b"
    assert call.request.messages == (Message("user", "hi"),)
    assert (call.request.text, call.request.stream, call.request.keep_alive) == (None, True, None)


def test_system_comes_first() -> None:
    assert generate(prompt="hi", system="Be brief.").request.messages == (
        Message("system", "Be brief."),
        Message("user", "hi"),
    )


def test_raw_text_stays_as_it_is() -> None:
    request = generate(prompt="<|x|> hi", raw=True).request
    assert (request.text, request.messages) == ("<|x|> hi", None)


def test_raw_with_empty_template_system_and_context_is_fine() -> None:
    empty = {"template": "", "system": "", "context": [], "suffix": "", "images": []}
    assert generate(prompt="hi", raw=True, **empty).request.text == "hi"


def test_a_suffix_makes_a_gap_even_at_the_beginning() -> None:
    call = generate(prompt="def f(", suffix="return 1", system="ignored")
    assert (call.request.text, call.request.suffix) == ("def f(", "return 1")
    assert call.request.messages is None
    at_the_beginning = generate(suffix="x")
    assert (at_the_beginning.action, at_the_beginning.request.text) == ("generate", "")
    assert generate(prompt="x", suffix="").request.suffix is None


def test_an_exchange_goes_on_and_tells_its_tokens() -> None:
    request = generate(prompt="hi", context=[1, 2]).request
    assert (request.context, request.tell_context) == ((1, 2), True)
    assert not generate(prompt="hi", raw=True).request.tell_context
    assert not chat({"role": "user"}).request.tell_context


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content }}", "{{ range(3) }}{{ not x }}", "{% if x %}{% else %}{% endif %}"],
)
def test_a_template_in_jinja_goes_along(template: str) -> None:
    assert generate(prompt="hi", template=template).request.template == template


@pytest.mark.parametrize("stream", [None, True, False])
def test_only_the_prompt_is_wanted(stream: bool | None) -> None:
    for call in (
        generate(prompt="hi", _debug_render_only=True, stream=stream),
        chat({"role": "user"}, _debug_render_only=True, stream=stream),
    ):
        assert (call.request.want, call.request.stream) == ("prompt", False)


def test_the_dialects_defaults_stand_behind_what_the_client_says() -> None:
    request = generate(prompt="hi", options={"temperature": 0, "top_k": None}).request
    assert request.sampling.temperature == 0
    assert request.sampling.top_k is None
    both = request.sampling.over(request.fallback)
    assert (both.temperature, both.top_k, both.top_p) == (0, 40, 0.9)
    assert (both.repeat_penalty, both.repeat_last_n, both.seed) == (1.0, 64, None)


@pytest.mark.parametrize(
    ("keep_alive", "action"),
    [(None, "load"), ("5m", "load"), (-1, "load"), (0, "unload"), ("0s", "unload")],
)
def test_nothing_to_answer_loads_or_unloads(keep_alive: Any, action: str) -> None:
    for call in (generate(keep_alive=keep_alive), chat(keep_alive=keep_alive)):
        assert call.action == action
    assert generate(prompt="", keep_alive=keep_alive).action == action
    assert generate(prompt="hi", keep_alive=keep_alive).action == "generate"


def test_load_and_unload_are_answered_by_one_object() -> None:
    codec, chat_codec = GenerateCodec(), ChatCodec()
    assert codec.render_action(generate(keep_alive=0), 5.0) == {
        "model": "M:1b",
        "created_at": "1970-01-01T00:00:05.000000Z",
        "response": "",
        "done": True,
        "done_reason": "unload",
    }
    assert chat_codec.render_action(chat(), 5.0) == {
        "model": "M:1b",
        "created_at": "1970-01-01T00:00:05.000000Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }


def test_names_match_in_any_case() -> None:
    call = ChatCodec().parse(
        {"Model": "m", "Messages": [{"Role": "User", "Content": "hi"}], "Keep_Alive": -1},
        id="a",
        now=0.0,
    )
    assert call.request.messages == (Message("user", "hi"),)
    assert call.request.keep_alive == math.inf


def test_templates_find_a_tool_whose_names_are_in_any_case() -> None:
    function = {"Name": "f", "DESCRIPTION": "d", "Parameters": {"type": "object"}, "isPure": True}
    call = chat({"role": "user"}, Tools=[{"Type": "function", "Function": function}])
    meant = {"name": "f", "description": "d", "parameters": {"type": "object"}, "isPure": True}
    assert call.request.tools == ({"type": "function", "function": meant},)
    assert list(call.request.tools[0]["function"]) == list(meant)
    twice = chat({"role": "user"}, tools=[{"function": {"name": "g", "NAME": "f"}}]).request.tools
    assert twice[0]["function"]["name"] == "g"


def test_null_is_absent_everywhere() -> None:
    names = ("prompt", "suffix", "system", "template", "context", "stream", "raw", "format")
    more = (
        "images",
        "options",
        "think",
        "keep_alive",
        "truncate",
        "shift",
        "logprobs",
        "top_logprobs",
    )
    call = generate(**dict.fromkeys((*names, *more, "category", "max_tokens", "temperature")))
    assert (call.action, call.request.stream) == ("load", True)
    inner = dict.fromkeys(("content", "thinking", "images", "tool_calls", "tool_name"))
    assert chat({"role": "user"} | inner, tools=None).request.messages == (Message("user"),)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("json", "json"),
        ("", None),
        (None, None),
        ({}, {}),
        ({"type": "object"}, {"type": "object"}),
    ],
)
def test_formats(given: Any, meant: Any) -> None:
    assert generate(prompt="x", format=given).request.format == meant


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max", None])
def test_think(think: Any) -> None:
    assert chat({"role": "user"}, think=think).request.think == think


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({}, None),
        ({"top_logprobs": 5}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": False, "top_logprobs": 3}, None),
    ],
)
def test_logprobs(asked: dict[str, Any], meant: int | None) -> None:
    assert generate(prompt="x", **asked).request.logprobs == meant


def test_a_conversation_with_tools() -> None:
    called = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    request = chat(
        {"role": "SYSTEM", "content": "s"},
        {"role": "assistant", "thinking": "hm", "tool_calls": [called]},
        {"role": "tool", "content": "2", "tool_name": "f", "tool_call_id": "call_1"},
        tools=[TOOL, {"function": {"name": "g"}}],
    ).request
    assert request.messages == (
        Message("system", "s"),
        Message("assistant", thinking="hm", tool_calls=(CalledTool("f", {"a": 1}, "call_1"),)),
        Message("tool", "2", tool_name="f", tool_call_id="call_1"),
    )
    assert request.tools == (TOOL, {"type": "function", "function": {"name": "g"}})


def test_mlxds_own_fields_on_generate() -> None:
    call = GenerateCodec().parse(
        {"category": "coding", "prompt": "x", "max_tokens": 9, "temperature": 0.5}, id="a", now=0.0
    )
    assert (call.category, call.request.model, call.request.max_tokens) == ("coding", "", 9)
    assert call.request.sampling.temperature == 0.5


def test_options_win_over_the_old_names() -> None:
    options = {"num_predict": 3, "temperature": 0}
    request = generate(prompt="x", max_tokens=9, temperature=0.5, options=options).request
    assert (request.max_tokens, request.sampling.temperature) == (3, 0)
