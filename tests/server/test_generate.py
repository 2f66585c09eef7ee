"""How many answers one request may ask for, and what is wrong with it in its own words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from mlxd.core.caller import Caller
from mlxd.core.clock import ManualClock
from mlxd.core.errors import InvalidRequest, ResumeExpired
from mlxd.core.request import GenerationRequest
from mlxd.core.story import untold
from mlxd.dialects.base import Call
from mlxd.dialects.openai import ChatCodec
from mlxd.policy.load import Override, load
from mlxd.server.edge import CALLER, STORY, STREAM
from mlxd.server.edge import POLICIES as IN_FORCE
from mlxd.server.generate import Generate, _check_choices, _check_scored, _owner, _reword
from mlxd.server.intake import DIGEST, SIZE
from mlxd.server.resume import Resumption

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


def from_address(**headers: str) -> Any:
    request = make_mocked_request("POST", "/", headers=headers)
    request[CALLER] = Caller("10.0.0.1")
    return request


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer of somebody"},
        {"X-Api-Key": "x"},
        {"Cookie": "session=1"},
        {"X-Forwarded-For": "10.7.7.7"},
        {"User-Agent": "curl"},
    ],
)
def test_who_shares_an_address_owns_nothing_of_the_others_answers(headers: dict[str, str]) -> None:
    assert _owner(from_address(**headers)) == _owner(from_address(**headers))
    assert _owner(from_address(**headers)) != _owner(from_address())
    assert headers.popitem()[1] not in _owner(from_address(**headers))


def test_a_key_is_the_same_client_wherever_it_comes_from() -> None:
    here, there = from_address(User_Agent="a"), from_address(X_Forwarded_For="10.7.7.7")
    here[CALLER], there[CALLER] = Caller("10.0.0.1", "k", "t"), Caller("10.0.0.2", "k", "t")
    assert _owner(here) == _owner(there)


async def test_no_second_answer_begins_in_a_stream_that_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model of what it went on with has changed, and that came out late."""
    parts: Any = SimpleNamespace(resumption=Resumption(ManualClock(), POLICIES))
    codec = ChatCodec()
    begun: list[bool] = []

    async def told(self: Any, told: Any, call: Any, request: Any, policies: Any) -> Any:
        assert not begun, "a second one"
        begun.append(True)
        request[STREAM] = SimpleNamespace(begun=True)
        raise ResumeExpired("it has changed")

    monkeypatch.setattr(Generate, "_streamed", told)
    request = from_address()
    request[STORY], request[IN_FORCE] = untold(), POLICIES
    request[DIGEST], request[SIZE] = b"", 1
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(ResumeExpired):
        await Generate(parts, codec)._told(codec.parse(body, id="a", now=0.0), request, POLICIES)
    assert begun == [True]
