"""Tool calls as a grammar: what it takes, and what it does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.core.request import GenerationRequest, ToolChoice
from mlxd.grammar.compiling import compiled, matcher_of
from mlxd.grammar.markers import Markers
from mlxd.grammar.source import sources_of
from mlxd.grammar.tools import BadTools, calls_grammars

MARKERS = Markers("<tool_call>", "</tool_call>")


def tool(name: str, parameters: Any = None) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def function(name: str, **properties: Any) -> Any:
    return tool(name, {"properties": properties, "required": [*properties]})


ODD = 'a "quoted" näme\n'
TOOLS = (function("add", a={"type": "integer"}), tool("now"), tool(ODD, {"type": "object"}))


def takes(
    text: str, choice: ToolChoice, markers: Markers | None = None, tools: Any = TOOLS
) -> bool:
    """Whether it is a whole answer."""
    from llguidance import LLTokenizer

    tokenizer = LLTokenizer("byte")
    request = GenerationRequest(model="m", tools=tools, tool_choice=choice)
    matcher = compiled(sources_of(request, markers), lambda text: matcher_of(text, tokenizer))
    said = [*text.encode()]
    return bool(matcher.try_consume_tokens(said) == len(said) and matcher.is_accepting())


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


ANY, ONE = ToolChoice(required=True), ToolChoice(required=True, parallel=False)
ADD, NOW = call("add", a=1), call("now")


@pytest.mark.parametrize(
    ("text", "choice", "taken"),
    [
        (f"[{ADD}]", ANY, True),
        (f"[{ADD}, {NOW}]", ANY, True),
        ("[]", ANY, False),
        (ADD, ANY, False),
        (ADD, ONE, True),
        (NOW, ONE, True),
        (call(ODD, b=[1, {}]), ONE, True),
        (f"[{ADD}]", ONE, False),
        (call("add"), ONE, False),
        (call("add", a="1"), ONE, False),
        (call("add", a=1, b=2), ONE, False),
        (call("now", a=1), ONE, False),
        (call("other"), ONE, False),
        (NOW, ToolChoice(required=True, names=("add",), parallel=False), False),
        (ADD, ToolChoice(required=True, names=("add",), parallel=False), True),
        ("I cannot.", ANY, False),
    ],
)
def test_plain_calls(text, choice, taken):
    assert takes(text, choice) is taken


def test_calls_between_markers():
    wrapped = [f"<tool_call>\n{each}\n</tool_call>" for each in (ADD, NOW)]
    assert takes(wrapped[0], ANY, MARKERS)
    assert takes("\n".join(wrapped), ANY, MARKERS)
    assert takes(wrapped[1], ONE, MARKERS)
    assert not takes("\n".join(wrapped), ONE, MARKERS)
    assert not takes(ADD, ONE, MARKERS)
    assert not takes(wrapped[0] + "so", ANY, MARKERS)


def test_references_are_to_the_parameters_of_their_own_tool():
    def with_definition(name: str, definition: Any) -> Any:
        parameters = {"properties": {"a": {"$ref": "#/$defs/d"}}, "$defs": {"d": definition}}
        return tool(name, {**parameters, "required": ["a"]})

    both = (with_definition("f", {"const": 1}), with_definition("g", {"const": 2}))
    assert takes(call("f", a=1), ONE, tools=both)
    assert takes(call("g", a=2), ONE, tools=both)
    assert not takes(call("f", a=2), ONE, tools=both)


def test_what_is_not_understood_of_parameters_is_left_to_the_tool():
    unique = function("f", a={"type": "array", "items": {"const": 1}, "uniqueItems": True})
    assert takes(call("f", a=[1, 1]), ONE, tools=(unique,))


EMAIL = {"type": "string", "pattern": r"^(?!\.)[a-z.]+@[a-z.]+$"}
"""As Zod has it."""


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (EMAIL, "a@b.c"),
        ({"anyOf": [EMAIL, {"type": "null"}]}, "a@b.c"),
        ({"type": "array", "items": EMAIL}, ["a@b.c"]),
        ({"patternProperties": {"^(?!x)": EMAIL}, "additionalProperties": False}, {"y": "a@b.c"}),
        ({"type": "object", "properties": {"pattern": EMAIL}}, {"pattern": "a@b.c"}),
        ({"type": "string", "pattern": r"\bhere\b"}, "here"),
        ({"type": "string", "pattern": r"^(.)\1$"}, "aa"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_left_to_the_tool(schema, value):
    tools = (function("f", a=schema, b={"enum": [1]}),)
    assert takes(call("f", a=value, b=1), ONE, tools=tools)
    assert not takes(call("f", a=value, b=2), ONE, tools=tools)


def test_a_pattern_that_can_be_followed_is():
    tools = (function("f", a={"type": "string", "pattern": "^[a-c]+$"}),)
    assert takes(call("f", a="abc"), ONE, tools=tools)
    assert not takes(call("f", a="abd"), ONE, tools=tools)


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ((), ANY, "none is offered"),
        (({"type": "function"}, {"function": 5}), ANY, "none is offered"),
        (TOOLS, ToolChoice(required=True, names=("no",)), "none is offered"),
        ((tool("f", {"type": "string"}),), ANY, "tool f must be an object's schema"),
        ((tool("f", [1]),), ANY, "tool f must be an object's schema"),
    ],
)
def test_what_cannot_be_called_is_refused(tools, choice, words):
    with pytest.raises(BadTools, match=words):
        list(calls_grammars(tools, choice, None))
