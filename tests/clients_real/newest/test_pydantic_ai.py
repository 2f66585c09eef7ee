"""Pydantic AI: agents with tools and typed answers, over three of its providers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

from tests.clients_real.questions import FOXES, GUIDE, NOBODY, PORT, TOOLBOX, WEATHER
from tests.clients_real.servers import Server

KINDS = ("ollama", "openai", "responses", "anthropic")


class Fox(BaseModel):
    """A fox"""

    colour: Literal["red", "white"]
    tame: bool
    age: int = Field(ge=0, le=99)


def model_at(server: Server, kind: str, name: str) -> Any:
    if kind == "ollama":
        return OllamaModel(name, provider=OllamaProvider(base_url=server.v1))
    if kind == "anthropic":
        return AnthropicModel(name, provider=AnthropicProvider(base_url=server.url, api_key="any"))
    provider = OpenAIProvider(base_url=server.v1, api_key="any")
    if kind == "openai":
        return OpenAIChatModel(name, provider=provider)
    return OpenAIResponsesModel(name, provider=provider)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


async def test_whole_and_streamed(main: Server, kind: str) -> None:
    agent = Agent(model_at(main, kind, GUIDE))
    whole = await agent.run(PORT)
    assert "11435" in whole.output
    assert whole.usage.output_tokens > 0
    async with agent.run_stream(PORT) as stream:
        assert await stream.get_output() == whole.output


async def test_a_tool_is_called(main: Server, kind: str) -> None:
    asked: list[str] = []
    agent = Agent(model_at(main, kind, GUIDE), model_settings={"max_tokens": 200})

    @agent.tool_plain  # type: ignore[untyped-decorator]
    def get_weather(city: str) -> str:
        """Get the current weather of a city"""
        asked.append(city)
        return "It rains."

    answer = await agent.run(WEATHER, usage_limits=UsageLimits(request_limit=4))
    assert asked[0] == "Paris"
    assert answer.output


@pytest.mark.parametrize("way", ["tool", "native"])
async def test_a_typed_answer(main: Server, kind: str, way: str) -> None:
    """Of a random model: what holds it to the type is the daemon."""
    if (kind, way) == ("anthropic", "native"):
        pytest.skip("it knows by the model's name whether the API takes a schema")
    wanted: Any = Fox if way == "tool" else NativeOutput(Fox)
    agent: Any = Agent(
        model_at(main, kind, TOOLBOX), output_type=wanted, model_settings={"max_tokens": 400}
    )
    answer = await agent.run(FOXES)
    assert isinstance(answer.output, Fox)


async def test_an_unknown_model(main: Server, kind: str) -> None:
    with pytest.raises(ModelHTTPError) as caught:
        await Agent(model_at(main, kind, NOBODY)).run(FOXES)
    assert caught.value.status_code == 404
