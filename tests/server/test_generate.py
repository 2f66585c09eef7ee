"""How many answers one request may ask for, and what is wrong with it in its own words."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call
from mlxd.policy.load import Override, load
from mlxd.server.generate import _check_choices, _check_scored, _reword

POLICIES: Any = load(None, [Override("limits.choices", "3", "a test")])


def call_of(count: int, **request: Any) -> Call:
    first, *more = [GenerationRequest(model="m", **request)] * count
    return Call("a", 0.0, "generate", first, tuple(more), plural="best_of")


def test_one_for_more_than_policy_allows_is_refused_with_its_line() -> None:
    _check_choices(call_of(3), POLICIES)
    with pytest.raises(InvalidRequest) as caught:
        _check_choices(call_of(4), POLICIES)
    assert caught.value.param == "best_of"
    assert caught.value.explained() == (
        "the request asks for 4 answers; at most 3 are given. Policy: limits.choices: 3 (a test)."
        " Would pass: at most 3 answers in one request"
    )


def test_what_is_no_answer_is_not_limited_by_it() -> None:
    _check_choices(call_of(2048, want="embedding"), POLICIES)


@pytest.mark.parametrize("prompt", [{"text": "x" * 60_000}, {"token_ids": (1,) * 15_000}])
def test_scores_of_more_than_can_be_written_soon_are_refused(prompt: dict[str, Any]) -> None:
    _check_scored(call_of(1, **prompt, echo=True, logprobs=5))
    _check_scored(call_of(4, **prompt, echo=True, logprobs=0))
    _check_scored(call_of(9, **prompt, echo=True))
    _check_scored(call_of(9, **prompt, logprobs=5))
    with pytest.raises(InvalidRequest, match=r"prompts of 87381 characters \(4 for a token id\)"):
        _check_scored(call_of(2, **prompt, echo=True, logprobs=5))


@pytest.mark.parametrize(
    ("param", "words", "told"),
    [
        ("format", "format: no such type", ("guided_json", "guided_json: no such type")),
        ("format", "no such format: x", ("guided_json", "no such format: x")),
        ("stop", "stop: format: x", ("stop", "stop: format: x")),
        (None, "format: x", (None, "format: x")),
    ],
)
def test_a_field_is_called_as_the_client_called_it(
    param: str | None, words: str, told: tuple[str | None, str]
) -> None:
    error = InvalidRequest(words, param=param)
    _reword(error, {"format": "guided_json"})
    assert (error.param, error.message) == told
