"""Every error of core/errors.py has its words in every dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mlxd.core.errors import (
    ContextExceeded,
    DeadlineExceeded,
    MlxdError,
    ModelNotFound,
    Overloaded,
    PolicyLine,
    RateLimited,
    RequestTooLarge,
)
from mlxd.dialects import anthropic
from mlxd.dialects.anthropic.errors import NAMES as ANTHROPIC_NAMES
from mlxd.dialects.openai.errors import NAMES

TOO_LONG = re.compile(
    r"prompt is too long: |prompt too long; exceeded max context length: "
    r"|This model's maximum context length is [a-z0-9 ]+: "
)
LINE = PolicyLine("limits.concurrency.max_in_flight", "5", "limits.yaml:5")


def every(kind: type[MlxdError] = MlxdError) -> Iterator[type[MlxdError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from every(inner)


KINDS = sorted(set(every()), key=lambda kind: kind.__name__)


def test_there_is_a_name_for_every_code_and_no_other() -> None:
    assert {kind.code for kind in KINDS} == NAMES.keys()
    assert {kind.code for kind in KINDS} == ANTHROPIC_NAMES.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_rendered_whole_and_in_the_stream(spoken, kind) -> None:
    error = kind("what", policy=LINE)
    rendered = spoken.codec.render_error(error)
    text = rendered["error"]
    if not spoken.name.startswith("ollama"):
        own = {"param", "code"} if spoken.name.startswith("openai") else set()
        assert rendered["error"].keys() == {"message", "type", "policy"} | own
        text = rendered["error"]["message"]
        assert rendered["error"]["policy"] == {
            "key": "limits.concurrency.max_in_flight",
            "value": "5",
            "place": "limits.yaml:5",
        }
    text = TOO_LONG.sub("", text)
    assert text.endswith("what' not found. Policy: " + str(LINE)) or text == error.explained()
    record = spoken.codec.encoder(spoken.call()).fail(error)
    assert record.endswith(b"\n")
    assert b"limits.yaml:5" in record


EXPLAINED = Overloaded(
    "Server overloaded. Max 5 concurrent requests (server busy, please try again)",
    retry_after=2.345,
    policy=LINE,
    numbers={"running": 5, "waiting": 7},
    would_pass="the same request in 3 s",
)


def test_programs_are_told_what_decided_and_what_would_have_passed(spoken) -> None:
    if spoken.name.startswith("ollama"):
        return
    told = spoken.codec.render_error(EXPLAINED)["error"]
    assert told["numbers"] == {"running": 5, "waiting": 7}
    assert told["would_pass"] == "the same request in 3 s"
    assert told["retry_after"] == 2.3
    record = spoken.codec.encoder(spoken.call()).fail(EXPLAINED)
    assert b'"numbers":{"running":5,"waiting":7}' in record


def test_ollamas_clients_read_it_behind_the_documented_text(spoken) -> None:
    if not spoken.name.startswith("ollama"):
        return
    assert spoken.codec.render_error(EXPLAINED) == {
        "error": "Server overloaded. Max 5 concurrent requests (server busy, please try again)."
        " Numbers: waiting 7. Policy: limits.concurrency.max_in_flight: 5 (limits.yaml:5)."
        " Would pass: the same request in 3 s"
    }


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_agents_look_for(spoken) -> None:
    error = ContextExceeded("input length (9 tokens) exceeds it", numbers={"allowed_tokens": 7})
    told = spoken.codec.render_error(error)["error"]
    text = told if isinstance(told, str) else told["message"]
    words = {
        "ollama": "prompt too long; exceeded max context length: ",
        "openai": "This model's maximum context length is 7 tokens for a prompt: ",
        "anthropic": "prompt is too long: ",
    }
    expected = next(words[api] for api in words if spoken.name.startswith(api))
    assert text.startswith(expected + "input length (9 tokens) exceeds it")
    record = spoken.codec.encoder(spoken.call()).fail(error)
    assert expected.encode() in record


@pytest.mark.parametrize("name", ["prompt_tokens", "prompt_tokens_at_least"])
def test_an_agent_reads_by_how_much_a_prompt_is_too_long(name) -> None:
    """As Claude Code does: without it, it drops a fifth of the conversation and asks again."""
    error = ContextExceeded("it is", numbers={name: 90_210, "allowed_tokens": 8191})
    told = anthropic.MessagesCodec().render_error(error)["error"]["message"]
    found = re.search(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", told, re.IGNORECASE)
    assert found is not None
    assert found.groups() == ("90210", "8191")


def test_ollama_says_an_error_and_nothing_else(spoken) -> None:
    if not spoken.name.startswith("ollama"):
        return
    assert spoken.codec.render_error(Overloaded("busy")) == {"error": "busy"}
    assert spoken.codec.render_error(ModelNotFound("x")) == {"error": "model 'x' not found"}


@pytest.mark.parametrize(
    ("error", "kind", "code", "param"),
    [
        (ModelNotFound("x"), "invalid_request_error", "model_not_found", "model"),
        (Overloaded("full"), "overloaded", "overloaded", None),
        (RateLimited("slow"), "rate_limit_error", "rate_limit_exceeded", None),
    ],
)
def test_openai_names_what_sdks_look_for(spoken, error, kind, code, param) -> None:
    if not spoken.name.startswith("openai"):
        return
    expected = {"message": error.message, "type": kind, "param": param, "code": code}
    assert spoken.codec.render_error(error) == {"error": expected}


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ModelNotFound("x"), "not_found_error", "model 'x' not found"),
        (Overloaded("full"), "overloaded_error", "full"),
        (RateLimited("slow"), "rate_limit_error", "slow"),
        (DeadlineExceeded("late"), "timeout_error", "late"),
        (RequestTooLarge("large"), "request_too_large", "large"),
        (ContextExceeded("9 > 8"), "invalid_request_error", "prompt is too long: 9 > 8"),
    ],
)
def test_anthropic_names_what_clients_look_for(error, kind, words) -> None:
    assert anthropic.MessagesCodec().render_error(error) == {
        "type": "error",
        "error": {"type": kind, "message": words},
        "request_id": None,
    }


def test_anthropics_stream_tells_the_requests_id_with_its_error() -> None:
    codec = anthropic.MessagesCodec()
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    call = replace(codec.parse(body, id="a", now=0.0), request_id="req-1")
    record = codec.encoder(call).fail(Overloaded("full"))
    assert record.startswith(b"event: error\ndata: {")
    assert b'"request_id":"req-1"' in record


def test_who_is_refused_in_the_stream_may_come_back_and_is_told_the_rest(
    spoken, events, now
) -> None:
    refused, other = (spoken.codec.encoder(spoken.call()) for _ in range(2))
    for event in events:
        assert refused.fail(Overloaded("full"))
        assert refused.feed([event], now) == other.feed([event], now)
