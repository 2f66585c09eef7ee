"""What OpenAI's text completion bodies mean."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.request import GenerationRequest, Sampling
from mlxd.dialects.openai import CompletionCodec


def parse(**body: Any) -> GenerationRequest:
    return CompletionCodec().parse({"model": "m", "prompt": "hi"} | body, id="a", now=0.0).request


def test_the_least_that_is_valid() -> None:
    assert parse() == GenerationRequest(
        model="m",
        text="hi",
        max_tokens=16,
        fallback=Sampling(temperature=1.0, top_p=1.0),
        stream=False,
    )


@pytest.mark.parametrize(
    ("prompt", "text", "token_ids"),
    [
        ("a", "a", None),
        (["a"], "a", None),
        ([1, 2], None, (1, 2)),
        ([0], None, (0,)),
        ([[1, 2]], None, (1, 2)),
    ],
)
def test_prompts(prompt: Any, text: str | None, token_ids: tuple[int, ...] | None) -> None:
    request = parse(prompt=prompt)
    assert (request.text, request.token_ids, request.messages) == (text, token_ids, None)


@pytest.mark.parametrize(("logprobs", "meant"), [(None, None), (0, 0), (5, 5)])
def test_logprobs(logprobs: int | None, meant: int | None) -> None:
    assert parse(logprobs=logprobs).logprobs == meant


def test_what_asks_for_nothing_special_passes() -> None:
    assert parse(n=1, best_of=1, echo=False, suffix="", max_tokens=None) == parse()
