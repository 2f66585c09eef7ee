"""Instructor: typed answers by each of its modes, of a random model."""

from __future__ import annotations

from typing import Any, Literal

import anthropic
import instructor
import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients_real.questions import FOXES, TOOLBOX
from tests.clients_real.servers import Server

MODES = ("TOOLS", "JSON_SCHEMA")
MESSAGES: Any = [{"role": "user", "content": FOXES}]


class Fox(BaseModel):
    """A fox"""

    colour: Literal["red", "white"]
    tame: bool
    age: int = Field(ge=0, le=99)


@pytest.mark.parametrize("mode", MODES)
def test_by_openai(main: Server, mode: str) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=main.v1, api_key="any", max_retries=0), mode=instructor.Mode[mode]
    )
    fox = client.create(
        model=TOOLBOX, messages=MESSAGES, response_model=Fox, max_retries=1, max_tokens=400
    )
    assert isinstance(fox, Fox)


@pytest.mark.parametrize("mode", MODES)
async def test_by_openai_without_blocking(main: Server, mode: str) -> None:
    client = instructor.from_openai(
        openai.AsyncOpenAI(base_url=main.v1, api_key="any", max_retries=0),
        mode=instructor.Mode[mode],
    )
    fox = await client.create(
        model=TOOLBOX, messages=MESSAGES, response_model=Fox, max_retries=1, max_tokens=400
    )
    assert isinstance(fox, Fox)


def test_partial_answers(main: Server) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=main.v1, api_key="any", max_retries=0),
        mode=instructor.Mode.JSON_SCHEMA,
    )
    *_, last = client.create_partial(
        model=TOOLBOX, messages=MESSAGES, response_model=Fox, max_tokens=400
    )
    assert last.colour in ("red", "white")


def test_by_anthropic(main: Server) -> None:
    client = instructor.from_anthropic(
        anthropic.Anthropic(base_url=main.url, api_key="any", max_retries=0)
    )
    fox = client.create(
        model=TOOLBOX, messages=MESSAGES, response_model=Fox, max_retries=1, max_tokens=400
    )
    assert isinstance(fox, Fox)
