"""The guide model, asked through both packages: what a user without any model meets first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

import mlxd
from tests.support.daemon import Daemon, daemon

GUIDE = Path(mlxd.__file__).parent / "guide"
QUESTION = "What port does mlxd use?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "its name"}},
        },
    },
}
JSON: Any = [{"role": "user", "content": "Which port does mlxd listen on? Answer in JSON."}]
MOST_TOKENS = 200
"""Far more than any of these answers needs: so much only one that never ends comes to."""

pytestmark = pytest.mark.skipif(
    not (GUIDE / "config.json").exists(), reason="mlxd/guide holds no model yet"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without any other model, under the shipped limits."""
    with daemon(tmp_path_factory.mktemp("guide")) as running:
        yield running


@pytest.fixture(scope="module")
def by_ollama(alone: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(host=alone.url) as client:
        yield client


@pytest.fixture(scope="module")
def by_openai(alone: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{alone.url}/v1", api_key="any") as client:
        yield client


@pytest.mark.parametrize("name", ["default", "mlxd-guide"])
def test_ollama_is_told_the_port(by_ollama: ollama.Client, name: str) -> None:
    whole = by_ollama.chat(name, MESSAGES)
    parts = list(by_ollama.chat(name, MESSAGES, stream=True))
    assert "11435" in (whole.message.content or "")
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert whole.done_reason == parts[-1].done_reason == "stop"


@pytest.mark.parametrize("name", ["default", "mlxd-guide"])
def test_openai_is_told_the_port(by_openai: openai.OpenAI, name: str) -> None:
    """The model's own temperature 0 goes before the API's default of 1."""
    create = by_openai.chat.completions.create
    whole = create(model=name, messages=MESSAGES)
    chunks = list(create(model=name, messages=MESSAGES, stream=True))
    text = whole.choices[0].message.content
    assert "11435" in (text or "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert whole.choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_it_answers_in_russian(by_ollama: ollama.Client) -> None:
    question = "На каком порту работает mlxd?"
    answer = by_ollama.chat("default", [{"role": "user", "content": question}])
    assert "11435" in (answer.message.content or "")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_ollama_gets_a_tool_call(by_ollama: ollama.Client, stream: bool) -> None:
    options = {"num_predict": MOST_TOKENS}
    request: Any = {"messages": WEATHER, "tools": [TOOL], "stream": stream, "options": options}
    answer: Any = by_ollama.chat("default", **request)
    parts = list(answer) if stream else [answer]
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, dict(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    assert "<tool_call>" not in "".join(part.message.content or "" for part in parts)


def test_openai_gets_a_tool_call(by_openai: openai.OpenAI) -> None:
    create: Any = by_openai.chat.completions.create
    answer = create(model="default", messages=WEATHER, tools=[TOOL], max_tokens=MOST_TOKENS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_the_openai_stream_helper_gets_a_tool_call(by_openai: openai.OpenAI) -> None:
    with by_openai.chat.completions.stream(
        model="default", messages=WEATHER, tools=[TOOL], max_tokens=MOST_TOKENS
    ) as stream:
        final: Any = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_openai_responses_loop_through_a_tool(by_openai: openai.OpenAI) -> None:
    """Streamed, then gone on from by its id, and by sending all of it again: the same answer."""
    tool = {"type": "function", "strict": None} | TOOL["function"]
    options: Any = {"model": "default", "tools": [tool], "max_output_tokens": MOST_TOKENS}
    with by_openai.responses.stream(input=WEATHER, **options) as stream:
        first: Any = stream.get_final_response()
    (call,) = first.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert json.loads(call.arguments) == {"city": "Paris"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny, 31 C"}
    create: Any = by_openai.responses.create
    second = create(input=[result], previous_response_id=first.id, **options)
    again = create(input=[*WEATHER, *first.to_dict()["output"], result], **options)
    assert [item.type for item in second.output] == ["message"]
    assert second.output_text == again.output_text
    assert second.usage.input_tokens == again.usage.input_tokens > first.usage.input_tokens


def test_json_on_request(by_ollama: ollama.Client) -> None:
    asked = by_ollama.chat("default", JSON, options={"num_predict": MOST_TOKENS})
    assert asked.done_reason == "stop"
    assert "11435" in str(json.loads(asked.message.content or ""))


def test_json_where_the_format_demands_it(
    by_ollama: ollama.Client, by_openai: openai.OpenAI
) -> None:
    held = by_ollama.chat("default", JSON, format="json", options={"num_predict": MOST_TOKENS})
    assert isinstance(json.loads(held.message.content or ""), dict)
    answer = by_openai.chat.completions.create(
        model="default",
        messages=JSON,
        response_format={"type": "json_object"},
        max_tokens=MOST_TOKENS,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_it_is_listed_with_what_it_can(by_ollama: ollama.Client, by_openai: openai.OpenAI) -> None:
    (listed,) = by_ollama.list().models
    assert listed.model == "mlxd-guide:latest"
    assert [model.id for model in by_openai.models.list()] == ["mlxd-guide"]
    shown = by_ollama.show("default")
    assert set(shown.capabilities or ()) == {"completion", "tools", "embedding"}
    assert "temperature" in (shown.parameters or "")


def test_it_does_not_think(by_ollama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
        by_ollama.chat("default", MESSAGES, think=True)
    assert caught.value.status_code == 400
