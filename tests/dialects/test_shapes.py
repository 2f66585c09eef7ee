"""The shapes of bodies say what the parsers read and what the codecs write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from mlxd.core.errors import InvalidRequest, MlxdError, PolicyLine
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.anthropic import shapes as anthropics
from mlxd.dialects.base import Codec
from mlxd.dialects.common_shapes import shapes as common
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.ollama import options
from mlxd.dialects.ollama import shapes as ollamas
from mlxd.dialects.ollama.create import parse_create
from mlxd.dialects.openai import shapes as openais
from mlxd.dialects.openai.responses import shapes as responses
from mlxd.dialects.shaping import Shapes
from tests.support.closed import closed

SHAPES: Shapes = {
    **common(),
    **ollamas.shapes(),
    **openais.shapes(),
    **responses.shapes(),
    **anthropics.shapes(),
}
LINE = PolicyLine("limits.choices", "4", "limits.yaml:3")
CHAT: Json = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
READ: list[tuple[Codec, str, Json]] = [
    (ollama.GenerateCodec(), "OllamaGenerateRequest", {"model": "m", "prompt": "hi"}),
    (ollama.ChatCodec(), "OllamaChatRequest", CHAT),
    (ollama.EmbedCodec(), "OllamaEmbedRequest", {"model": "m", "input": "hi"}),
    (ollama.EmbeddingsCodec(), "OllamaEmbeddingsRequest", {"model": "m", "prompt": "hi"}),
    (openai.ChatCodec(), "OpenAIChatRequest", CHAT),
    (openai.CompletionCodec(), "OpenAICompletionRequest", {"model": "m", "prompt": "hi"}),
    (openai.EmbeddingsCodec(), "OpenAIEmbeddingsRequest", {"model": "m", "input": "hi"}),
    (openai.ResponsesCodec(), "OpenAIResponseRequest", {"model": "m", "input": "hi"}),
    (anthropic.MessagesCodec(), "AnthropicMessagesRequest", CHAT | {"max_tokens": 3}),
    (anthropic.CountCodec(), "AnthropicCountRequest", CHAT),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, str]]:
    """Names that parsers ask for: (whether of `options`, the name)."""
    names: set[tuple[bool, str]] = set()
    get = Fields.get

    def noted(self: Fields, name: str) -> Any:
        if not self._path:
            names.add((self._complaint is options._complain, name))
        return get(self, name)

    monkeypatch.setattr(Fields, "get", noted)
    return names


@pytest.mark.parametrize(("codec", "name", "body"), READ, ids=[read[1] for read in READ])
def test_a_request_has_the_fields_that_are_read(
    asked: set[tuple[bool, str]], codec: Codec, name: str, body: Json
) -> None:
    jsonschema.validate(body, _whole(name))
    codec.parse(body, id="a", now=0.0)
    assert {field for of_options, field in asked if not of_options} == set(
        SHAPES[name]["properties"]
    )


def test_options_are_those_that_are_read(asked: set[tuple[bool, str]]) -> None:
    options.read_options({})
    assert {name for _, name in asked} == set(SHAPES["OllamaOptions"]["properties"])


def test_a_creation_has_the_fields_that_are_read(asked: set[tuple[bool, str]]) -> None:
    parse_create({"from": "m", "model": None, "name": "x"})
    read = {name for of_options, name in asked if not of_options}
    assert read == set(SHAPES["OllamaCreateRequest"]["properties"])


@pytest.mark.parametrize(("codec", "name", "body"), READ, ids=[read[1] for read in READ])
def test_what_a_shape_bounds_is_refused_beyond_it(codec: Codec, name: str, body: Json) -> None:
    """Each field whose shape has a largest value, one above."""
    for field, value in _beyond(name):
        with pytest.raises(InvalidRequest):
            codec.parse(body | {field: value}, id="a", now=0.0)


def _beyond(name: str) -> Iterator[tuple[str, Any]]:
    for field, shape in SHAPES[name]["properties"].items():
        if "maximum" in shape:
            yield field, shape["maximum"] + 1
        if shape.get("minimum") is not None and "maximum" in shape:
            yield field, shape["minimum"] - 1


@pytest.mark.parametrize(
    ("codec", "shape"),
    [
        (ollama.ChatCodec(), "OllamaError"),
        (openai.ChatCodec(), "OpenAIError"),
        (anthropic.MessagesCodec(), "AnthropicError"),
    ],
)
def test_every_error_has_its_shape(codec: Codec, shape: str) -> None:
    for error in _every(MlxdError):
        made = error("no", retry_after=2.0, would_pass="less", numbers={"asked": 3}, policy=LINE)
        jsonschema.validate(codec.render_error(made), _closed(shape))


def _every(root: type[MlxdError]) -> Iterator[type[MlxdError]]:
    for error in root.__subclasses__():
        if error.code != "model_not_found":
            yield error
        yield from _every(error)


def _whole(name: str) -> Json:
    """With everything that it refers to."""
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": dict(SHAPES)}}


def _closed(name: str) -> Json:
    shape: Json = closed(_whole(name))
    return shape
