"""How soon a request asks to be served, and for whom, in every dialect."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import GenerationRequest
from mlxd.dialects import anthropic, ollama, openai

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BODIES: list[tuple[Any, dict[str, Any]]] = [
    (ollama.ChatCodec(), CHAT),
    (ollama.GenerateCodec(), {"model": "m", "prompt": "hi"}),
    (ollama.EmbedCodec(), {"model": "m", "input": "hi"}),
    (ollama.EmbeddingsCodec(), {"model": "m", "prompt": "hi"}),
    (openai.ChatCodec(), CHAT),
    (openai.CompletionCodec(), {"model": "m", "prompt": "hi"}),
    (openai.EmbeddingsCodec(), {"model": "m", "input": "hi"}),
    (openai.ResponsesCodec(), {"model": "m", "input": "hi"}),
    (anthropic.MessagesCodec(), CHAT | {"max_tokens": 9}),
    (anthropic.CountCodec(), CHAT),
]
OPENAI = BODIES[4:8]


def read(codec: Any, body: dict[str, Any], **more: Any) -> GenerationRequest:
    request: GenerationRequest = codec.parse(body | more, id="x", now=0.0).request
    return request


@pytest.mark.parametrize(("codec", "body"), BODIES)
def test_a_body_may_name_its_class(codec: Any, body: dict[str, Any]) -> None:
    said = [None, "high", "Medium", "low", -5, 0, 3]
    found = [read(codec, body, priority=value).priority for value in said]
    assert found == [None, "high", "medium", "low", "high", "medium", "low"]


@pytest.mark.parametrize(("codec", "body"), BODIES)
@pytest.mark.parametrize("value", ["urgent", "", True, 1.5, ["high"], {}])
def test_no_other_class_is_taken(codec: Any, body: dict[str, Any], value: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r"(a|type) class \(high, medium, low\) or integer"
    ) as refused:
        read(codec, body, priority=value)
    assert refused.value.param == "priority"


@pytest.mark.parametrize(("codec", "body"), OPENAI)
def test_openais_tiers_are_classes(codec: Any, body: dict[str, Any]) -> None:
    tiers = ["priority", "fast", "flex", "auto", "default", "scale", "standard", "new"]
    found = [read(codec, body, service_tier=tier).priority for tier in tiers]
    assert found == ["high", "high", "low", None, None, None, None, None]
    assert read(codec, body, service_tier="flex", priority="high").priority == "high"


@pytest.mark.parametrize("tier", ["auto", "standard_only"])
def test_anthropics_tiers_leave_it_open(tier: str) -> None:
    codec, body = BODIES[8]
    assert read(codec, body, service_tier=tier).priority is None


@pytest.mark.parametrize(("codec", "body"), BODIES)
def test_a_body_may_say_for_whom_it_asks(codec: Any, body: dict[str, Any]) -> None:
    assert read(codec, body).user == ""
    given = {"metadata": {"user_id": "u" * 300}, "user": "u" * 300}
    assert read(codec, body, **given).user == "u" * 256
    assert read(codec, body, metadata={}, user=7).user == ""


@pytest.mark.parametrize(("codec", "body"), OPENAI)
def test_openais_newer_name_of_a_user_goes_before_the_old(codec: Any, body: dict[str, Any]) -> None:
    assert read(codec, body, user="old", safety_identifier="new").user == "new"
