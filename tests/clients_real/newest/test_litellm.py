"""LiteLLM: one function, and a prefix of the model's name for each API."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network
os.environ["LITELLM_MODE"] = "PRODUCTION"
import litellm

from tests.clients_real.questions import (
    FOXES,
    GUIDE,
    NOBODY,
    PERSON,
    PORT,
    TINY,
    TOOL,
    WEATHER,
)
from tests.clients_real.servers import Server

PREFIXES = ("ollama", "ollama_chat", "openai", "anthropic")


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def options(server: Server, prefix: str, model: str) -> dict[str, Any]:
    base = server.v1 if prefix == "openai" else server.url
    return {
        "model": f"{prefix}/{model}",
        "api_base": base,
        "api_key": "any",
        "max_retries": 0,
        "max_tokens": 200,
    }


@pytest.fixture(params=PREFIXES)
def prefix(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_whole_and_streamed(main: Server, prefix: str) -> None:
    request = options(main, prefix, GUIDE)
    whole: Any = litellm.completion(messages=said(PORT), **request)
    assert "11435" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0
    chunks: Any = litellm.completion(messages=said(PORT), stream=True, **request)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content


async def test_without_blocking(main: Server, prefix: str) -> None:
    request = options(main, prefix, GUIDE)
    whole: Any = await litellm.acompletion(messages=said(PORT), **request)
    assert "11435" in whole.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool_call(main: Server, prefix: str, stream: bool) -> None:
    if prefix == "ollama":
        pytest.skip("it asks for JSON in words there, as before Ollama had tools")
    request = options(main, prefix, GUIDE)
    answer: Any = litellm.completion(messages=said(WEATHER), tools=[TOOL], stream=stream, **request)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_a_schema_is_kept_to(main: Server, prefix: str) -> None:
    if prefix == "anthropic":
        pytest.skip("it knows by the model's name whether the API takes a schema")
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer: Any = litellm.completion(
        messages=said(FOXES), response_format=wanted, **options(main, prefix, TINY)
    )
    assert json.loads(answer.choices[0].message.content).keys() == {"name", "age", "grown"}


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_embeddings(main: Server, kind: str) -> None:
    base = main.v1 if kind == "openai" else main.url
    answer: Any = litellm.embedding(
        model=f"{kind}/{TINY}", input=["A fox", "A dog"], api_base=base, api_key="any"
    )
    assert len(answer.data) == 2


def test_an_unknown_model(main: Server, prefix: str) -> None:
    with pytest.raises((litellm.NotFoundError, litellm.APIConnectionError)) as caught:
        litellm.completion(messages=said(FOXES), **options(main, prefix, NOBODY))
    assert "nobody" in str(caught.value)


@pytest.mark.parametrize("prefix", ["openai", "anthropic"])
def test_too_often(spent: Server, prefix: str) -> None:
    with pytest.raises(litellm.RateLimitError):
        litellm.completion(messages=said(FOXES), num_retries=0, **options(spent, prefix, TINY))


@pytest.mark.parametrize("prefix", ["openai", "anthropic"])
def test_too_many(single: Server, prefix: str) -> None:
    """Its Anthropic form has one exception for all that is above 500."""
    errors = (litellm.ServiceUnavailableError, litellm.InternalServerError)
    with single.held(), pytest.raises(errors, match="busy"):
        litellm.completion(messages=said(FOXES), num_retries=0, **options(single, prefix, TINY))
