"""What Anthropic's bodies mean."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlxd.core.request import CalledTool, GenerationRequest, Message, Sampling, ToolChoice
from mlxd.dialects.anthropic import CountCodec, MessagesCodec

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
WANTED = {"type": "json_schema", "schema": SCHEMA}
READ = {"name": "read", "description": "Read a file", "input_schema": SCHEMA}
READ_FOR_TEMPLATES = {
    "type": "function",
    "function": {"name": "read", "description": "Read a file", "parameters": SCHEMA},
}


def parse(*messages: Any, **body: Any) -> GenerationRequest:
    body = {"model": "m", "max_tokens": 9, "messages": list(messages or (USER,))} | body
    return MessagesCodec().parse(body, id="abc", now=5.0).request


def turns(*messages: Any, **body: Any) -> tuple[Message, ...]:
    found = parse(*messages, **body).messages
    assert found is not None
    return found


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words} | more


def called(id: str, name: str = "read", **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def told(id: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content} | more


def test_the_least_that_is_valid() -> None:
    assert parse() == GenerationRequest(
        model="m",
        messages=(Message("user", "hi"),),
        think=False,
        max_tokens=9,
        fallback=Sampling(temperature=1.0, top_p=1.0),
        stream=False,
    )


def test_what_says_how_to_answer() -> None:
    request = parse(
        temperature=0,
        top_p=0.5,
        top_k=7,
        stop_sequences=["a", "", "b"],
        stream=True,
        keep_alive=-1,
    )
    assert request.sampling == Sampling(temperature=0.0, top_p=0.5, top_k=7)
    assert request.stop == ("a", "b")
    assert request.stream
    assert request.keep_alive == math.inf


def test_what_is_not_ours_is_ignored_and_null_is_absent() -> None:
    ours: tuple[str, ...] = (
        "system",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "stream",
        "tools",
    )
    ours += ("tool_choice", "thinking", "output_config", "output_format", "mcp_servers")
    assert parse(**dict.fromkeys(ours)) == parse()
    foreign: dict[str, Any] = {
        "metadata": {"trace": "t"},
        "service_tier": "auto",
        "container": "c",
    }
    foreign |= {"cache_control": {"type": "ephemeral"}, "speed": "fast", "inference_geo": "eu"}
    assert parse(**foreign, context_management={"edits": []}, betas=["x"]) == parse()


def test_a_system_prompt_is_the_first_turn_and_billing_is_none_of_it() -> None:
    blocks = [text("x-anthropic-billing-header: cc_version=2; cch=1;"), text("a"), text("b")]
    assert turns(system="s") == (Message("system", "s"), Message("user", "hi"))
    assert turns(system=blocks)[0] == Message("system", "a\nb")
    assert turns(system="") == turns(system=[]) == turns()


def test_turns_of_the_system() -> None:
    first = {"role": "system", "content": "one"}
    assert turns(first, USER, system="zero")[0] == Message("system", "zero\none")
    later = [message.role for message in turns(USER, first, system="zero")]
    assert later == ["system", "user", "system"]


def test_neighbours_of_one_role_are_one_turn() -> None:
    both = turns(USER, user(text("you"), text("there", cache_control={"type": "ephemeral"})))
    assert both == (Message("user", "hi\nyou\nthere"),)
    spoken = turns(USER, assistant(text("a")), {"role": "assistant", "content": "b"}, USER)
    assert spoken[1] == Message("assistant", "a\nb")


def test_many_neighbours_are_joined_once() -> None:
    """Each by each they would take minutes."""
    (turn,) = turns(*[{"role": "user", "content": "x" * 200}] * 30_000)
    assert len(turn.content) == 201 * 30_000 - 1


def test_a_tool_loop() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    found = turns(
        USER,
        assistant(thinking, text("I look."), called("1", path="a"), called("2", path="b")),
        user(text("and?"), told("1", "A"), told("2", [text("B"), text("B2")], is_error=False)),
    )
    assert found == (
        Message("user", "hi"),
        Message(
            "assistant",
            "I look.",
            thinking="hm",
            tool_calls=(
                CalledTool("read", {"path": "a"}, "1"),
                CalledTool("read", {"path": "b"}, "2"),
            ),
        ),
        Message("tool", "A", tool_name="read", tool_call_id="1"),
        Message("tool", "B\nB2", tool_name="read", tool_call_id="2"),
        Message("user", "and?"),
    )


def test_a_tool_that_failed_without_a_word() -> None:
    asked = assistant(called("1"))
    assert turns(USER, asked, user(told("1", None, is_error=True)))[-1].content == "error"
    assert turns(USER, asked, user(told("1", "oh", is_error=True)))[-1].content == "oh"
    assert turns(USER, asked, user(told("1", None)))[-1].content == ""


def test_documents_and_finds_are_read_as_text() -> None:
    written = {"type": "text", "media_type": "text/plain", "data": "body"}
    parts = {"type": "content", "content": [text("p"), text("q")]}
    found = {"type": "search_result", "source": "s", "title": "t", "content": [text("x")]}
    message = user(
        {"type": "document", "source": written, "title": "T", "context": "C"},
        {"type": "document", "source": parts},
        found,
    )
    assert turns(message) == (Message("user", "T\nC\nbody\np\nq\nt\ns\nx"),)


def test_what_anthropics_own_servers_did_is_passed_over() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    hidden = {"type": "redacted_thinking", "data": "x"}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    assert turns(USER, assistant(hidden, search, found, text("a")), USER)[1] == Message(
        "assistant", "a"
    )


def test_an_answer_that_is_begun_goes_on() -> None:
    request = parse(USER, {"role": "assistant", "content": "It is"})
    assert request.continue_last
    assert request.messages == (Message("user", "hi"), Message("assistant", "It is"))
    assert not parse().continue_last


@pytest.mark.parametrize("content", ["", [], [{"type": "thinking", "thinking": "x"}]])
def test_an_answer_that_says_nothing_yet_is_not_begun(content: Any) -> None:
    request = parse(USER, {"role": "assistant", "content": content})
    assert not request.continue_last
    assert request.messages == (Message("user", "hi"),)


def test_tools() -> None:
    assert parse(tools=[READ, READ | {"type": "custom", "strict": True}]).tools == (
        (READ_FOR_TEMPLATES,) * 2
    )
    silent = parse(tools=[{"name": "f", "input_schema": {}}]).tools
    assert silent == ({"type": "function", "function": {"name": "f", "parameters": {}}},)


@pytest.mark.parametrize(
    ("choice", "offered", "meant"),
    [
        (None, 2, ToolChoice()),
        ({"type": "auto"}, 2, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, 2, ToolChoice(parallel=False)),
        ({"type": "any"}, 2, ToolChoice(required=True)),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            2,
            ToolChoice(required=True, parallel=False),
        ),
        ({"type": "tool", "name": "read"}, 1, ToolChoice(required=True, names=("read",))),
        ({"type": "none"}, 0, ToolChoice()),
    ],
)
def test_tool_choice(choice: Any, offered: int, meant: ToolChoice) -> None:
    request = parse(tools=[READ, READ | {"name": "write"}], tool_choice=choice)
    assert len(request.tools) == offered
    assert request.tool_choice == meant


@pytest.mark.parametrize(
    ("thinking", "effort", "think", "options"),
    [
        (None, None, False, {}),
        ({"type": "disabled"}, None, False, {}),
        ({"type": "enabled", "budget_tokens": 2048}, None, True, {}),
        ({"type": "adaptive", "display": "summarized"}, None, True, {}),
        ({"type": "between_tools"}, None, True, {}),
        ({"type": "adaptive"}, "xhigh", "max", {}),
        ({"type": "enabled"}, "low", "low", {}),
        (None, "high", False, {"reasoning_effort": "high"}),
    ],
)
def test_thinking(thinking: Any, effort: Any, think: Any, options: dict[str, str]) -> None:
    request = parse(thinking=thinking, output_config={"effort": effort})
    assert (request.think, request.template_options) == (think, options)


def test_a_schema_for_the_answer_where_new_and_where_old_clients_have_it() -> None:
    assert parse(output_config={"format": WANTED}).format == SCHEMA
    assert parse(output_format=WANTED).format == SCHEMA
    assert parse(output_config={"effort": "low"}).format is None


def test_no_tokens_means_no_answer() -> None:
    request = parse(max_tokens=0, stream=True)
    assert (request.want, request.max_tokens, request.stream) == ("prompt", None, True)


def test_a_count_reads_the_prompt_as_its_answer_would() -> None:
    body: dict[str, Any] = {"model": "m", "messages": [USER], "system": "s", "tools": [READ]}
    body |= {"tool_choice": {"type": "any"}, "thinking": {"type": "adaptive"}}
    counted = CountCodec().parse(body, id="abc", now=5.0).request
    answered = MessagesCodec().parse(body | {"max_tokens": 9}, id="abc", now=5.0).request
    assert (counted.want, counted.stream) == ("prompt", False)
    for name in ("messages", "continue_last", "tools", "think", "template_options"):
        assert getattr(counted, name) == getattr(answered, name)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"output_config": {"format": WANTED}}, "output_config.format.schema"),
        ({"output_format": WANTED}, "output_format.schema"),
    ],
)
def test_a_refusal_calls_a_schema_what_the_client_called_it(body: Any, name: str) -> None:
    call = MessagesCodec().parse(
        {"model": "m", "max_tokens": 9, "messages": [USER]} | body, id="abc", now=0.0
    )
    assert call.names == {"format": name, "stop": "stop_sequences"}


PDF = {"type": "base64", "media_type": "application/pdf", "data": "eA=="}


@pytest.mark.parametrize(
    ("medium", "named"),
    [
        ({"type": "image", "source": {"type": "url", "url": "http://x"}}, "image"),
        ({"type": "document", "source": PDF}, "document"),
    ],
)
def test_a_medium_that_a_tool_gives_is_named_and_not_read(medium: Any, named: str) -> None:
    """It stays in the conversation: refused, it would end that."""
    asked, given = assistant(called("c")), user(told("c", [text("here:"), medium]))
    result = turns(USER, asked, given)[-1]
    assert (result.role, result.content) == (
        "tool",
        f"here:\n[{named}: this model reads text only]",
    )


@pytest.mark.parametrize(
    "source", [{"type": "text", "data": "a"}, {"type": "content", "content": "a"}]
)
def test_a_document_of_text_that_a_tool_gives_is_read(source: Any) -> None:
    given = user(told("c", [{"type": "document", "source": source}]))
    assert turns(USER, assistant(called("c")), given)[-1].content == "a"
