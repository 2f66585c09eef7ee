"""LlamaIndex: its Ollama and OpenAI-like models, and the embedders of both."""

from __future__ import annotations

import math
from typing import Any, Literal

import ollama
import openai
import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

from tests.clients_real.questions import FOXES, GUIDE, NOBODY, PORT, TINY, TOOLBOX, WEATHER
from tests.clients_real.servers import Server

ASKED = [ChatMessage(role="user", content=PORT)]


class Fox(BaseModel):
    """A fox"""

    colour: Literal["red", "white"]
    tame: bool
    age: int = Field(ge=0, le=99)


def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    return f"It rains in {city}."


def model_at(server: Server, kind: str, name: str) -> Any:
    if kind == "ollama":
        options = {"num_predict": 400}
        return Ollama(model=name, base_url=server.url, additional_kwargs=options)
    return OpenAILike(
        model=name,
        api_base=server.v1,
        api_key="any",
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        max_tokens=400,
        max_retries=0,
    )


@pytest.fixture(params=["ollama", "openai"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def guide(main: Server, kind: str) -> Any:
    return model_at(main, kind, GUIDE)


def test_whole_and_streamed(guide: Any) -> None:
    whole = guide.chat(ASKED).message.content
    assert "11435" in whole
    assert [*guide.stream_chat(ASKED)][-1].message.content == whole
    assert guide.complete(PORT).text
    assert [*guide.stream_complete(PORT)][-1].text


async def test_without_blocking(guide: Any) -> None:
    whole = (await guide.achat(ASKED)).message.content
    parts = [part async for part in await guide.astream_chat(ASKED)]
    assert parts[-1].message.content == whole


def test_a_tool_call(guide: Any) -> None:
    tool = FunctionTool.from_defaults(get_weather)
    answer = guide.chat_with_tools([tool], user_msg=WEATHER)
    (call,) = guide.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})


def test_structured_output(main: Server, kind: str) -> None:
    model = model_at(main, kind, TOOLBOX).as_structured_llm(Fox)
    answer = model.chat([ChatMessage(role="user", content=FOXES)])
    assert isinstance(answer.raw, Fox)


def test_an_unknown_model(main: Server, kind: str) -> None:
    refusal: Any = {"ollama": ollama.ResponseError, "openai": openai.NotFoundError}[kind]
    with pytest.raises(refusal, match="not found"):
        model_at(main, kind, NOBODY).chat(ASKED)


def test_embeddings(main: Server) -> None:
    by_ollama = OllamaEmbedding(model_name=TINY, base_url=main.url)
    by_openai = OpenAILikeEmbedding(model_name=TINY, api_base=main.v1, api_key="any")
    one = by_ollama.get_text_embedding("A fox")
    assert math.isclose(math.hypot(*one), 1, rel_tol=1e-4)
    assert by_openai.get_text_embedding("A fox") == pytest.approx(one, abs=1e-5)
    assert len(by_ollama.get_text_embedding_batch(["A fox", "A dog"])) == 2
    assert len(by_openai.get_text_embedding_batch(["A fox", "A dog"])) == 2
