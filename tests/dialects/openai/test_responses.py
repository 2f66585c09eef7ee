"""What bodies of /v1/responses mean, and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import Completion, Finished
from mlxd.core.request import CalledTool, GenerationRequest, Message, Sampling, ToolChoice
from mlxd.dialects.base import Call
from mlxd.dialects.openai import ChatCodec, InputTokensCodec, ResponsesCodec
from mlxd.dialects.openai import shapes as openais
from mlxd.dialects.openai.responses import Earlier, references, response_of
from mlxd.dialects.openai.responses import shapes as responses
from tests.support.closed import closed

Json = dict[str, Any]
COMPONENTS: Json = {"components": {"schemas": {**openais.shapes(), **responses.shapes()}}}
USER = {"role": "user", "content": "hi"}
F = {"type": "function", "name": "f", "description": "does", "parameters": {"type": "object"}}
G = {"type": "function", "name": "g"}
CUSTOM = {"type": "custom", "name": "run"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def call(*items: Any, earlier: Sequence[Json] = (), **body: Any) -> Call:
    body = {"model": "m", "input": list(items or (USER,))} | body
    return ResponsesCodec().parse(body, id="abc", now=5.0, earlier=Earlier(conversation=earlier))


def parse(*items: Any, **body: Any) -> GenerationRequest:
    return call(*items, **body).request


def messages(*items: Any, **body: Any) -> tuple[Message, ...]:
    found = parse(*items, **body).messages
    assert found is not None
    return found


def told(request: GenerationRequest) -> list[str]:
    return [tool["function"]["name"] for tool in request.tools]


def test_the_least_that_is_valid() -> None:
    assert parse(input="hi") == GenerationRequest(
        model="m",
        messages=(Message("user", "hi"),),
        fallback=Sampling(temperature=1.0, top_p=1.0),
        stream=False,
    )


def test_it_means_what_a_chat_of_the_same_words_means() -> None:
    sampling = {"temperature": 0, "top_p": 0.5, "seed": 3, "top_k": 5, "stop": "x"}
    chat = {"model": "m", "messages": [USER], "max_tokens": 5, "stream": True} | sampling
    asked = parse(USER, max_output_tokens=5, stream=True, **sampling)
    assert asked == ChatCodec().parse(chat, id="abc", now=5.0).request


def test_null_is_absent_everywhere() -> None:
    names = """instructions previous_response_id store stream tools tool_choice text reasoning
    temperature top_p top_logprobs max_output_tokens max_tool_calls metadata include truncation
    service_tier user background conversation prompt parallel_tool_calls""".split()  # noqa: SIM905
    absent: dict[str, Any] = dict.fromkeys(names)
    assert call(**absent) == call()


@pytest.mark.parametrize(
    "content",
    [
        "a\nb",
        [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        [{"type": "output_text", "text": "a", "annotations": []}, {"type": "text", "text": "b"}],
        [{"type": "refusal", "refusal": "a\nb"}],
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_content_in_each_of_its_forms(role: str, content: Any) -> None:
    assert messages({"role": role, "content": content}) == (Message(role, "a\nb"),)


def test_instructions_come_first_and_are_one_message_with_what_follows_them() -> None:
    developer = {"type": "message", "role": "developer", "content": "d"}
    found = messages(developer, USER, developer, instructions="i")
    assert found == (
        Message("system", "i\n\nd"),
        Message("user", "hi"),
        Message("system", "d"),
    )


def test_what_the_model_said_in_one_go_is_one_turn() -> None:
    reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    said = {"type": "message", "role": "assistant", "content": "Let me see."}
    more = {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""}
    done = {
        "type": "function_call_output",
        "call_id": "c2",
        "output": [{"type": "input_text", "text": "x"}],
    }
    last = {"role": "assistant", "content": "42."}
    found = messages(USER, reasoning, said, CALL, more, OUTPUT, done, reasoning, last)
    calls = (CalledTool("f", {"a": 1}, "c1"), CalledTool("g", {}, "c2"))
    assert found == (
        Message("user", "hi"),
        Message("assistant", "Let me see.", thinking="Hm.", tool_calls=calls),
        Message("tool", "42", tool_name="f", tool_call_id="c1"),
        Message("tool", "x", tool_name="g", tool_call_id="c2"),
        Message("assistant", "42.", thinking="Hm."),
    )


def test_a_coding_agents_session() -> None:
    """Two developer messages, tools of every kind, reasoning that comes back with nulls."""
    spawn = {"type": "function", "name": "spawn", "parameters": {"type": "object"}}
    agents = {"type": "namespace", "name": "agents", "description": "", "tools": [spawn]}
    seen = [{"type": "summary_text", "text": "Run it."}]
    reasoning = {"type": "reasoning", "summary": seen, "content": None, "encrypted_content": "x"}
    found = call(
        {"type": "message", "id": "msg_1", "role": "developer", "content": "You are an agent."},
        {"type": "message", "id": "msg_2", "role": "developer", "content": "You have skills."},
        USER,
        reasoning,
        {"type": "message", "role": "assistant", "content": "Running."},
        CALL | {"status": "completed"},
        OUTPUT,
        tools=[F, agents, {"type": "web_search", "external_web_access": False}],
        tool_choice="auto",
        parallel_tool_calls=True,
        reasoning={"summary": "auto"},
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="session",
        client_metadata={"a": "b"},
    )
    assert told(found.request) == ["f", "agents__spawn"]
    assert [(m.role, m.content, m.thinking) for m in found.request.messages or ()] == [
        ("system", "You are an agent.\n\nYou have skills.", ""),
        ("user", "hi", ""),
        ("assistant", "Running.", "Run it."),
        ("tool", "42", ""),
    ]


def test_words_after_a_call_are_a_turn_of_their_own() -> None:
    said = {"role": "assistant", "content": "so"}
    assert [message.content for message in messages(USER, CALL, said)] == ["hi", "", "so"]


@pytest.mark.parametrize(
    "between",
    [
        {"role": "assistant", "content": "\n"},
        {"role": "assistant", "content": ""},
        {"type": "reasoning", "summary": []},
        {"type": "reasoning", "summary": [], "encrypted_content": "of another service"},
    ],
)
def test_what_says_nothing_parts_no_calls(between: Json) -> None:
    more = {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""}
    done = OUTPUT | {"call_id": "c2"}
    found = messages(USER, CALL, between, more, OUTPUT, done)
    assert [len(message.tool_calls) for message in found] == [0, 2, 0, 0]


@pytest.mark.parametrize("kind", ["web_search_call", "mcp_list_tools", "compaction"])
def test_what_another_service_did_is_passed_over(kind: str) -> None:
    there = {"type": kind, "id": "x_1", "status": "completed", "action": {"type": "search"}}
    said = [{"role": "assistant", "content": text} for text in ("I look.", "It rains.")]
    made = call(USER, said[0], there, said[1])
    assert made.request.messages == (
        Message("user", "hi"),
        Message("assistant", "I look.\nIt rains."),
    )
    assert [item["type"] for item in made.about["items"]] == ["message"] * 3


LS = {"commands": ["ls"], "timeout_ms": 100}
EXEC = {"type": "exec", "command": ["ls"], "env": {}}
PATCH = {"type": "delete_file", "path": "a.py"}
CLICK = {"type": "click", "x": 1, "y": 2, "button": "left"}
SCREEN = {"type": "computer_screenshot", "image_url": "data:image/png;base64,AAAA"}
RUNS = [
    {"stdout": "a b", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}},
    {"stdout": "", "stderr": "no", "outcome": {"type": "exit", "exit_code": 1}, "created_by": "x"},
    {"stdout": "", "stderr": "", "outcome": {"type": "timeout"}},
]


@pytest.mark.parametrize(
    ("kind", "asked", "arguments", "gave", "said"),
    [
        ("shell", {"action": LS}, LS, {"output": "a b"}, "a b"),
        (
            "shell",
            {"action": LS, "environment": {"type": "local"}, "caller": None},
            LS,
            {"output": RUNS, "max_output_length": 9},
            "a b\nexit code 0\nno\nexit code 1\ntimeout",
        ),
        ("shell", {"action": LS}, LS, {"output": [{"stdout": "a"}]}, "a"),
        ("local_shell", {"action": EXEC}, EXEC, {"output": '{"stdout": "a"}'}, '{"stdout": "a"}'),
        ("apply_patch", {"operation": PATCH}, PATCH, {"status": "completed"}, "completed"),
        ("apply_patch", {"operation": PATCH}, PATCH, {"output": "Done"}, "Done"),
        (
            "apply_patch",
            {"operation": PATCH},
            PATCH,
            {"status": "failed", "output": "no a.py"},
            "failed\nno a.py",
        ),
        (
            "computer",
            {"action": CLICK, "pending_safety_checks": []},
            CLICK,
            {"output": SCREEN, "acknowledged_safety_checks": None},
            "[computer_screenshot: this model reads text only]",
        ),
        (
            "computer",
            {"actions": [CLICK, CLICK]},
            {"actions": [CLICK, CLICK]},
            {"output": SCREEN},
            "[computer_screenshot: this model reads text only]",
        ),
        (
            "computer",
            {},
            {},
            {"output": SCREEN},
            "[computer_screenshot: this model reads text only]",
        ),
    ],
)
def test_openais_own_tools_that_a_client_runs_are_functions_in_a_conversation(
    kind: str, asked: Json, arguments: Json, gave: Json, said: str
) -> None:
    made = {"type": f"{kind}_call", "id": "x_1", "call_id": "c1", "status": "completed"} | asked
    output = {"type": f"{kind}_call_output", "call_id": "c1"} | gave
    found = call(USER, made, output)
    assert found.request.messages == (
        Message("user", "hi"),
        Message("assistant", tool_calls=(CalledTool(kind, arguments, "c1"),)),
        Message("tool", said, tool_name=kind, tool_call_id="c1"),
    )
    kept = found.about["items"]
    assert [item["type"] for item in kept[1:]] == [made["type"], output["type"]]
    assert "AAAA" not in str(kept)
    again = call(*kept)
    assert again.request.messages == found.request.messages
    assert again.about["items"] == kept
    schema = closed({"$ref": "#/components/schemas/OpenAIKeptItem"} | COMPONENTS)
    for item in kept:
        jsonschema.validate(item, schema)
    for item in (made, output):
        jsonschema.validate(item, {"$ref": "#/components/schemas/OpenAIItem"} | COMPONENTS)


@pytest.mark.parametrize("named", [{"id": "c1"}, {"id": "lsh_1"}, {"id": "out", "call_id": "c1"}])
def test_what_a_local_shell_gave_may_name_its_call_by_its_own_id(named: Json) -> None:
    made = {"type": "local_shell_call", "id": "lsh_1", "call_id": "c1", "action": EXEC}
    found = call(USER, made, {"type": "local_shell_call_output", "output": "a b"} | named)
    assert (found.request.messages or ())[-1] == Message(
        "tool", "a b", tool_name="local_shell", tool_call_id="c1"
    )
    kept = found.about["items"]
    assert len({item["id"] for item in kept}) == 3
    assert kept[-1]["call_id"] == "c1"


def test_a_functions_output_may_be_of_a_shell() -> None:
    """As coding agents send it."""
    made = {"type": "local_shell_call", "call_id": "c1", "action": EXEC}
    assert messages(USER, made, OUTPUT)[-1].content == "42"


def test_an_effort_is_repeated_in_a_word_that_clients_know() -> None:
    made = call(USER, reasoning={"effort": "ultra"})
    assert made.about["settings"]["reasoning"]["effort"] == made.request.think == "max"


def test_reasoning_in_either_form_is_read() -> None:
    content = [{"type": "reasoning_text", "text": "raw"}]
    both = {"type": "reasoning", "summary": [], "content": content, "encrypted_content": "%%"}
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA=="}
    assert messages(both, {"role": "assistant", "content": "x"})[0].thinking == "raw"
    assert messages(foreign, {"role": "assistant", "content": "x"})[0].thinking == ""


def test_it_goes_on_behind_an_earlier_response() -> None:
    """Its conversation is read like the input; its instructions are not part of it."""
    earlier = [*call(USER, instructions="old").about["items"], CALL | {"id": "fc_x_0"}]
    found = call(OUTPUT, earlier=earlier, instructions="new", previous_response_id="resp_x")
    assert found.request.messages == (
        Message("system", "new"),
        Message("user", "hi"),
        Message("assistant", tool_calls=(CalledTool("f", {"a": 1}, "c1"),)),
        Message("tool", "42", tool_name="f", tool_call_id="c1"),
    )
    kept = [item["type"] for item in found.about["items"]]
    assert kept == ["function_call_output"], "of this turn alone"


def test_an_earlier_response_is_enough() -> None:
    assert messages(input=[], earlier=[USER]) == (Message("user", "hi"),)


def test_items_are_kept_without_what_nobody_reads_and_mean_the_same_again() -> None:
    items = [
        {"id": "msg_own", "type": "message", "role": "user", "content": "hi", "secret": "x"},
        {"type": "reasoning", "summary": [], "encrypted_content": "SG0=", "status": None},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hm", "logprobs": [1]}]},
        CALL,
        OUTPUT,
        {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "a b"},
    ]
    first = call(*items)
    kept = first.about["items"]
    assert [item["id"] for item in kept] == [
        "msg_own",
        "rs_abc_in1",
        "msg_abc_in2",
        "fc_abc_in3",
        "fco_abc_in4",
        "ctc_abc_in5",
        "ctco_abc_in6",
    ]
    assert "secret" not in kept[0]
    again = call(*kept)
    assert again.request.messages == first.request.messages
    assert again.about["items"] == kept


def test_no_two_items_of_a_conversation_have_one_id() -> None:
    """Whoever lists them page by page names the last one that it has."""
    said = {"id": "msg_own", **USER}
    earlier = Earlier(conversation=[{"id": "msg_earlier", **USER}])
    body = {"model": "m", "input": [said, {"id": "msg_earlier", **USER}, said]}
    kept = ResponsesCodec().parse(body, id="abc", now=0.0, earlier=earlier).about["items"]
    assert [item["id"] for item in kept] == ["msg_own", "msg_abc_in1", "msg_abc_in2"]


def test_items_are_referred_to_by_their_ids() -> None:
    reference = {"type": "item_reference", "id": "fc_xyz_1"}
    bare = {"id": "msg_xyz_0"}
    body = {"model": "m", "input": [bare, reference, OUTPUT], "previous_response_id": "resp_q"}
    assert references(body) == ("resp_q", ["msg_xyz_0", "fc_xyz_1"])
    assert {response_of(id) for id in references(body)[1]} == {"resp_xyz"}
    items = {"msg_xyz_0": USER, "fc_xyz_1": CALL}
    found = ResponsesCodec().parse(body, id="a", now=0.0, earlier=Earlier(items=items)).request
    assert found.messages is not None
    assert [message.role for message in found.messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "body", [{}, {"input": "x"}, {"input": [5, {"id": 5}, USER]}, {"previous_response_id": 5}]
)
def test_whatever_the_body_its_references_are_found(body: Json) -> None:
    assert references(body) == (None, [])


def test_a_tool_is_told_as_chat_templates_want_it() -> None:
    found = parse(tools=[F, G])
    assert found.tools == (
        {"type": "function", "function": {k: v for k, v in F.items() if k != "type"}},
        {"type": "function", "function": {"name": "g"}},
    )
    assert found.tool_choice == ToolChoice()


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    (tool,) = parse(tools=[CUSTOM]).tools
    assert tool["function"]["name"] == "run"
    assert tool["function"]["parameters"]["required"] == ["input"]


def test_a_grammar_of_a_custom_tool_is_told_to_the_model_and_repeated() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}
    found = call(tools=[CUSTOM | {"format": form, "description": "runs"}])
    (tool,) = found.request.tools
    assert tool["function"]["description"].startswith("runs\n\n")
    assert tool["function"]["description"].endswith('lark grammar:\nstart: "a"')
    assert found.about["settings"]["tools"][0]["format"] == form


def test_tools_that_an_item_brings_are_offered_and_kept() -> None:
    space = {"type": "namespace", "name": "a", "description": "", "tools": [F]}
    item = {
        "type": "additional_tools",
        "role": "developer",
        "tools": [space, {"type": "web_search"}],
    }
    found = call(item, USER)
    assert told(found.request) == ["a__f"]
    kept = found.about["items"]
    assert [one["type"] for one in kept] == ["additional_tools", "message"]
    assert told(parse(USER, earlier=kept, tools=[{"type": "web_search"}])) == ["a__f"]


def test_the_last_of_tools_of_one_name_is_offered_and_the_bodys_own_before_any() -> None:
    first, second = (
        {"type": "additional_tools", "tools": [one | {"description": words}, G]}
        for one, words in ((CUSTOM, "old"), (CUSTOM, "new"))
    )
    found = parse(first, second, USER, tools=[G | {"description": "own"}])
    said = {tool["function"]["name"]: tool["function"].get("description") for tool in found.tools}
    assert said == {"g": "own", "run": "new"}


def test_tools_of_namespaces_are_told_apart() -> None:
    spaces = [
        {"type": "namespace", "name": name, "description": "", "tools": [F | {"strict": None}]}
        for name in ("a", "mcp__b__")
    ]
    found = parse(CALL | {"namespace": "a"}, tools=[F, *spaces])
    assert told(found) == ["f", "a__f", "mcp__b__f"]
    assert found.messages is not None
    assert found.messages[0].tool_calls[0].name == "a__f"


@pytest.mark.parametrize("kind", ["web_search", "web_search_preview", "image_generation"])
def test_hosted_tools_are_left_out_beside_others(kind: str) -> None:
    found = call(tools=[{"type": kind}, F])
    assert told(found.request) == ["f"]
    assert [tool["type"] for tool in found.about["settings"]["tools"]] == ["function"]


@pytest.mark.parametrize(
    ("choice", "names", "meant"),
    [
        ("auto", ["f", "g", "run"], ToolChoice()),
        ("none", [], ToolChoice()),
        ("required", ["f", "g", "run"], ToolChoice(required=True)),
        ({"type": "function", "name": "g"}, ["g"], ToolChoice(True, ("g",))),
        ({"type": "custom", "name": "run"}, ["run"], ToolChoice(True, ("run",))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            ["f"],
            ToolChoice(),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [
                    {"type": "function", "name": "g"},
                    {"type": "web_search"},
                    {"type": "function", "name": "f"},
                    {"type": "function", "name": "f"},
                ],
            },
            ["g", "f"],
            ToolChoice(True, ("g", "f")),
        ),
    ],
)
def test_tool_choice(choice: Any, names: list[str], meant: ToolChoice) -> None:
    found = parse(tools=[F, G, CUSTOM], tool_choice=choice)
    assert (told(found), found.tool_choice) == (names, meant)


def test_one_call_at_most() -> None:
    assert parse(tools=[F], parallel_tool_calls=False).tool_choice == ToolChoice(parallel=False)
    assert parse(parallel_tool_calls=False).tool_choice == ToolChoice()


@pytest.mark.parametrize(
    ("form", "meant"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "name": "n", "schema": {"type": "object"}}, {"type": "object"}),
    ],
)
def test_format(form: Json, meant: Any) -> None:
    found = call(text={"format": form, "verbosity": "low"})
    assert found.request.format == meant
    shown = found.about["settings"]["text"]
    assert shown["verbosity"] == "low"
    assert shown["format"]["type"] == form["type"]


def test_what_form_an_answer_has_may_be_said_in_other_words() -> None:
    found = call(guided_regex="[ab]", text={"format": {"type": "text"}})
    assert (found.request.pattern, found.request.format) == ("[ab]", None)
    assert found.names["pattern"] == "guided_regex"
    assert call(text={"format": {"type": "json_object"}}).names["format"] == "text.format"
    assert found.names["max_tokens"] == "max_output_tokens"


@pytest.mark.parametrize(
    ("body", "think"),
    [
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, "high"),
        ({"reasoning": {"summary": "auto"}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        (
            {"reasoning": {"effort": "low"}, "chat_template_kwargs": {"enable_thinking": False}},
            "low",
        ),
    ],
)
def test_thinking(body: Json, think: Any) -> None:
    assert parse(**body).think == think


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["file_search_call.results"]}, None),
    ],
)
def test_logprobs(body: Json, meant: int | None) -> None:
    assert parse(**body).logprobs == meant


@pytest.mark.parametrize(
    ("keeps", "store", "kept"),
    [(True, None, True), (True, False, False), (False, True, False), (False, None, False)],
)
def test_an_answer_says_whether_it_is_kept(keeps: bool, store: bool | None, kept: bool) -> None:
    body = {"model": "m", "input": "hi", "store": store}
    found = ResponsesCodec().parse(body, id="abc", now=5.0, keeps=keeps)
    assert found.about["settings"]["store"] is kept


def test_sixteen_pairs_of_metadata_are_taken_and_no_more() -> None:
    pairs = {f"{number:064}": "v" * 512 for number in range(16)}
    assert call(metadata=pairs).about["settings"]["metadata"] == pairs
    with pytest.raises(InvalidRequest, match="metadata takes at most 16 pairs"):
        call(metadata=pairs | {"more": ""})


def test_input_tokens_are_those_of_the_prompt() -> None:
    codec = InputTokensCodec()
    found = codec.parse({"model": "m", "input": "hi", "stream": True}, id="abc", now=0.0)
    assert (found.request.want, found.request.stream) == ("prompt", False)
    assert found.about["settings"]["store"] is False
    completion = Completion(finished=Finished("stop", 12, 0))
    answer = codec.render(found, [completion], 0.0)
    assert answer == {"object": "response.input_tokens", "input_tokens": 12}


def test_a_picture_that_a_tool_gives_is_named_and_not_read() -> None:
    """It stays in the conversation: refused, it would end that."""
    output = [{"type": "input_image", "image_url": "data:"}, {"type": "input_text", "text": "a"}]
    said = messages(USER, CALL, OUTPUT | {"output": output})[-1].content
    assert said == "[input_image: this model reads text only]\na"
