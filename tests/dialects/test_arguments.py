"""What the tool calls of a conversation were given, in whatever dialect it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import Message
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.anthropic import shapes as anthropics
from mlxd.dialects.base import Codec
from mlxd.dialects.common_shapes import shapes as common
from mlxd.dialects.ollama import shapes as ollamas
from mlxd.dialects.openai import shapes as openais
from mlxd.dialects.openai.responses import shapes as responses

Json = dict[str, Any]
COMPONENTS: Json = {
    "components": {
        "schemas": {
            **common(),
            **anthropics.shapes(),
            **ollamas.shapes(),
            **openais.shapes(),
            **responses.shapes(),
        }
    }
}


def of_chat(given: Any) -> Json:
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": given}}
    done = {"role": "tool", "tool_call_id": "c1", "content": "no"}
    return {"messages": [{"role": "assistant", "content": None, "tool_calls": [called]}, done]}


def of_old_chat(given: Any) -> Json:
    called = {"name": "f", "arguments": given}
    return {"messages": [{"role": "assistant", "content": "", "function_call": called}]}


def of_responses(given: Any) -> Json:
    called = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": given}
    return {"input": [called, {"type": "function_call_output", "call_id": "c1", "output": "no"}]}


def of_anthropic(given: Any) -> Json:
    called = {"type": "tool_use", "id": "c1", "name": "f", "input": given}
    done = {"type": "tool_result", "tool_use_id": "c1", "content": "no", "is_error": True}
    turns = [{"role": "assistant", "content": [called]}, {"role": "user", "content": [done]}]
    return {"messages": turns, "max_tokens": 5}


def of_ollama(given: Any) -> Json:
    called = {"function": {"name": "f", "arguments": given}}
    done = {"role": "tool", "tool_name": "f", "content": "no"}
    return {"messages": [{"role": "assistant", "tool_calls": [called]}, done]}


EACH = [
    pytest.param(codec, shape, body, id=body.__name__)
    for codec, shape, body in (
        (openai.ChatCodec(), "OpenAIChatRequest", of_chat),
        (openai.ChatCodec(), "OpenAIChatRequest", of_old_chat),
        (openai.ResponsesCodec(), "OpenAIResponseRequest", of_responses),
        (anthropic.MessagesCodec(), "AnthropicMessagesRequest", of_anthropic),
        (ollama.ChatCodec(), "OllamaChatRequest", of_ollama),
    )
]
AS_THEY_ARE = EACH[3:]


def read(codec: Codec, shape: str, body: Json) -> Json:
    body = {"model": "m"} | body
    schema = {"$ref": f"#/components/schemas/{shape}"} | COMPONENTS
    jsonschema.validate(body, schema)
    messages = codec.parse(body, id="abc", now=0.0).request.messages
    assert messages is not None
    assert isinstance(messages[0], Message)
    (called,) = messages[0].tool_calls
    return called.arguments


@pytest.mark.parametrize(("codec", "shape", "body"), EACH)
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ('""', {}),
        ('{"city": "Par', {"input": '{"city": "Par'}),
        ('"{\\"city\\": \\"Par"', {"input": '{"city": "Par'}),
        ('["a"]', {"input": '["a"]'}),
        ("7", {"input": "7"}),
        ("null", {"input": "null"}),
        ("Paris", {"input": "Paris"}),
        ("[" * 100_000, {"input": "[" * 100_000}),
        ('{"a":' * 100_000, {"input": '{"a":' * 100_000}),
        ('{"a":' * 65 + "1" + "}" * 65, {"input": '{"a":' * 65 + "1" + "}" * 65}),
    ],
    ids=range(12),
)
def test_what_is_no_object_is_the_calls_input(
    codec: Codec, shape: str, body: Callable[[Any], Json], given: str, meant: Json
) -> None:
    """Or deeper than is read. A client sends it in each turn to come."""
    assert read(codec, shape, body(given)) == meant


@pytest.mark.parametrize(("codec", "shape", "body"), AS_THEY_ARE)
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"a": 1}, {"a": 1}),
        (["a", {"b": 1}], {"input": '["a",{"b":1}]'}),
        (7, {"input": "7"}),
        (False, {"input": "false"}),
        (None, {}),
    ],
)
def test_so_it_is_where_no_text_is_asked_for(
    codec: Codec, shape: str, body: Callable[[Any], Json], given: Any, meant: Json
) -> None:
    assert read(codec, shape, body(given)) == meant


@pytest.mark.parametrize(("codec", "shape", "body"), EACH)
def test_as_much_is_read_as_has_bounds(
    codec: Codec, shape: str, body: Callable[[Any], Json]
) -> None:
    with pytest.raises(InvalidRequest, match="too many values in the arguments") as refused:
        read(codec, shape, body('{"a":[' + "[]," * 250_000 + "[]]}"))
    assert refused.value.param
