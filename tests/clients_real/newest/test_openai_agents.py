"""The OpenAI Agents SDK, over chat completions and over responses."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

from tests.clients_real.questions import FOXES, GUIDE, NOBODY, PORT, TINY, WEATHER
from tests.clients_real.servers import Server

ASKED: list[str] = []


class Fox(BaseModel):
    colour: Literal["red", "white"]
    tame: bool


@function_tool  # type: ignore[untyped-decorator]
def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    ASKED.append(city)
    return "It rains."


@pytest.fixture(params=["chat", "responses"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def agent_at(server: Server, kind: str, model: str, **options: Any) -> Agent:
    set_tracing_disabled(True)  # traces would go to OpenAI
    client = openai.AsyncOpenAI(base_url=server.v1, api_key="any", max_retries=0)
    makers: dict[str, Any] = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
    made = makers[kind](model=model, openai_client=client)
    settings = ModelSettings(max_tokens=200)
    return Agent(
        name="guide",
        instructions="You are mlxd's guide.",
        model=made,
        model_settings=settings,
        **options,
    )


async def test_whole_and_streamed(main: Server, kind: str) -> None:
    agent = agent_at(main, kind, GUIDE)
    whole = await Runner.run(agent, PORT)
    assert "11435" in whole.final_output
    streamed = Runner.run_streamed(agent, PORT)
    pieces = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(pieces) == whole.final_output


async def test_a_tool_is_called(main: Server, kind: str) -> None:
    ASKED.clear()
    answer = await Runner.run(agent_at(main, kind, GUIDE, tools=[get_weather]), WEATHER)
    assert ASKED[0] == "Paris"
    assert answer.final_output


async def test_a_typed_answer(main: Server, kind: str) -> None:
    answer = await Runner.run(agent_at(main, kind, TINY, output_type=Fox), FOXES)
    assert isinstance(answer.final_output, Fox)
    json.loads(answer.final_output.model_dump_json())


async def test_an_unknown_model(main: Server, kind: str) -> None:
    with pytest.raises(openai.NotFoundError):
        await Runner.run(agent_at(main, kind, NOBODY), FOXES)
