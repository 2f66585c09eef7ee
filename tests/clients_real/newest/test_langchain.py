"""LangChain's three chat models and two embedders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import anthropic
import ollama
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from tests.clients_real.questions import FOXES, GUIDE, NOBODY, PORT, TINY, TOOLBOX, WEATHER
from tests.clients_real.servers import Server

KEY = SecretStr("any")
KINDS = ("ollama", "openai", "responses", "anthropic")
ERRORS: dict[str, Any] = {
    "ollama": ollama.ResponseError,
    "openai": openai.APIStatusError,
    "responses": openai.APIStatusError,
    "anthropic": anthropic.APIStatusError,
}


class Fox(BaseModel):
    """A fox"""

    colour: Literal["red", "white"]
    tame: bool


@tool  # type: ignore[untyped-decorator]
def get_weather(city: str) -> str:
    """Get the current weather of a city"""
    return f"It rains in {city}."


def model_at(server: Server, kind: str, model: str, tokens: int = 200) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "ollama": lambda: ChatOllama(model=model, base_url=server.url, num_predict=tokens),
        "openai": lambda: ChatOpenAI(
            model=model, base_url=server.v1, api_key=KEY, max_retries=0, max_tokens=tokens
        ),
        "responses": lambda: ChatOpenAI(
            model=model,
            base_url=server.v1,
            api_key=KEY,
            max_retries=0,
            max_tokens=tokens,
            use_responses_api=True,
        ),
        "anthropic": lambda: ChatAnthropic(
            model=model, base_url=server.url, api_key=KEY, max_retries=0, max_tokens=tokens
        ),
    }
    return makers[kind]()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def guide(main: Server, kind: str) -> Any:
    return model_at(main, kind, GUIDE)


def test_whole_and_streamed(guide: Any) -> None:
    whole = guide.invoke(PORT)
    assert "11435" in whole.text
    assert whole.usage_metadata["input_tokens"] > 0
    assert whole.usage_metadata["output_tokens"] > 0
    pieces = [chunk.text for chunk in guide.stream(PORT)]
    assert "".join(pieces) == whole.text
    assert len(pieces) > 2
    assert [answer.text for answer in guide.batch([PORT, PORT])] == [whole.text] * 2


async def test_without_blocking(guide: Any) -> None:
    whole = await guide.ainvoke(PORT)
    assert "".join([chunk.text async for chunk in guide.astream(PORT)]) == whole.text


def test_a_tool_and_its_result(guide: Any) -> None:
    bound = guide.bind_tools([get_weather])
    first = bound.invoke(WEATHER)
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    last = bound.invoke([HumanMessage(WEATHER), first, result])
    assert last.usage_metadata["output_tokens"] > 0


def test_a_streamed_tool_call(guide: Any) -> None:
    whole: Any = None
    for chunk in guide.bind_tools([get_weather]).stream(WEATHER):
        whole = chunk if whole is None else whole + chunk
    (call,) = whole.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


def test_a_tool_is_demanded(main: Server, kind: str) -> None:
    if kind == "ollama":
        pytest.skip("Ollama's API has no tool_choice")
    model = model_at(main, kind, TOOLBOX, 400)
    calls = model.bind_tools([Fox], tool_choice="Fox").invoke(FOXES).tool_calls
    assert calls
    assert all(isinstance(Fox.model_validate(call["args"]), Fox) for call in calls)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(main: Server, kind: str, method: str) -> None:
    if (kind, method) == ("ollama", "function_calling"):
        pytest.skip("Ollama's API has no tool_choice")
    model = model_at(main, kind, TOOLBOX, 400)
    fox = model.with_structured_output(Fox, method=method).invoke(FOXES)
    assert isinstance(fox, Fox)


@pytest.mark.parametrize(
    ("where", "model", "status"), [("main", NOBODY, 404), ("spent", TINY, 429)]
)
def test_a_refusal(
    request: pytest.FixtureRequest, kind: str, where: str, model: str, status: int
) -> None:
    chat = model_at(request.getfixturevalue(where), kind, model)
    with pytest.raises(ERRORS[kind]) as caught:
        chat.invoke(FOXES)
    assert caught.value.status_code == status


def test_a_refusal_of_a_stream(single: Server, kind: str) -> None:
    with single.held(), pytest.raises(ERRORS[kind]) as caught:
        list(model_at(single, kind, TINY).stream(FOXES))
    assert caught.value.status_code == 503


def test_plain_completions(main: Server) -> None:
    by_ollama = OllamaLLM(model=TINY, base_url=main.url, num_predict=12)
    by_openai = OpenAI(model=TINY, base_url=main.v1, api_key=KEY, max_tokens=12)
    for completions in (by_ollama, by_openai):
        assert completions.invoke(FOXES)
        assert "".join(completions.stream(FOXES))
    assert len(by_openai.generate([FOXES, PORT]).generations) == 2


def test_embeddings(main: Server) -> None:
    """The second would ask tiktoken for OpenAI's own tokens, and that the network."""
    by_ollama = OllamaEmbeddings(model=TINY, base_url=main.url)
    by_openai = OpenAIEmbeddings(
        model=TINY, base_url=main.v1, api_key=KEY, check_embedding_ctx_length=False
    )
    one = by_ollama.embed_query("A fox")
    assert math.isclose(math.hypot(*one), 1, rel_tol=1e-4)
    assert by_openai.embed_query("A fox") == pytest.approx(one, abs=1e-5)
    assert len(by_ollama.embed_documents(["A fox", "A dog"])) == 2
    assert len(by_openai.embed_documents(["A fox", "A dog"])) == 2
