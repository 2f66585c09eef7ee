"""What clients send: the bytes of a body, from the parser to the dialects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mlxd.core.errors import InvalidRequest, MlxdError, ModelNotFound
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.base import Call, Codec, to_json
from mlxd.dialects.ollama.create import parse_create
from mlxd.grammar.source import BadGrammar, is_held, sources_of
from mlxd.server.body import JsonLimits, parse_json
from mlxd.server.errors import STATUS
from mlxd.server.pull import named, streamed
from tests.dialects.test_fuzz import WORDS as FIELDS
from tests.fuzz.target import Target, flaw_in_words

Json = dict[str, Any]
_DATA = Path(__file__).parents[2] / "data" / "dialects"
_WORDS = [json.dumps(word).encode() for word in FIELDS]
_LIMITS = JsonLimits()
_CARRIED = msgspec.msgpack.Decoder(Call)
_TURNS = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
_SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {}}}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}
_CREATION = {
    "model": "a", "from": "b", "system": "s", "template": "{{ messages }}", "license": ["x"],
    "messages": _TURNS["messages"], "parameters": {"num_ctx": 9, "stop": ["x"], "seed": 1},
}  # fmt: skip

OPENAI: dict[str, tuple[Codec, Sequence[Json]]] = {
    "openai.chat": (
        openai.ChatCodec(),
        (
            _TURNS | {"tools": [_TOOL], "tool_choice": "required", "stream": True, "n": 2},
            _TURNS
            | {"response_format": {"type": "json_schema", "json_schema": {"schema": _SCHEMA}}},
            _TURNS | {"logprobs": True, "top_logprobs": 3, "logit_bias": {"5": 1}, "stop": ["x"]},
        ),
    ),
    "openai.completion": (openai.CompletionCodec(), ({"model": "m", "prompt": ["x", [1, 2]]},)),
    "openai.embeddings": (
        openai.EmbeddingsCodec(),
        ({"model": "m", "input": [[1], [2]], "encoding_format": "base64"},),
    ),
    "openai.responses": (
        openai.ResponsesCodec(),
        (
            {"model": "m", "input": [{"role": "user", "content": "x"}], "instructions": "y"},
            {"model": "m", "input": "x", "text": {"format": {"type": "json_object"}}},
        ),
    ),
    "openai.input_tokens": (openai.InputTokensCodec(), ({"model": "m", "input": "x"},)),
}
OLLAMA: dict[str, tuple[Codec, Sequence[Json]]] = {
    "ollama.generate": (
        ollama.GenerateCodec(),
        ({"model": "m", "prompt": "x", "options": {"num_predict": 3}, "format": _SCHEMA},),
    ),
    "ollama.chat": (ollama.ChatCodec(), (_TURNS | {"keep_alive": "5m", "tools": [_TOOL]},)),
    "ollama.embed": (ollama.EmbedCodec(), ({"model": "m", "input": ["x"], "truncate": False},)),
    "ollama.embeddings": (ollama.EmbeddingsCodec(), ({"model": "m", "prompt": "x"},)),
}
ANTHROPIC: dict[str, tuple[Codec, Sequence[Json]]] = {
    "anthropic.messages": (
        anthropic.MessagesCodec(),
        (
            _TURNS | {"max_tokens": 5, "system": [{"type": "text", "text": "s"}]},
            _TURNS | {"max_tokens": 5, "tools": [{"name": "f", "input_schema": _SCHEMA}]},
        ),
    ),
    "anthropic.count": (anthropic.CountCodec(), (_TURNS,)),
}


def of_dialect(name: str, codecs: dict[str, tuple[Codec, Sequence[Json]]]) -> Target:
    """All of a dialect's endpoints read each body."""
    own = [body for _, bodies in codecs.values() for body in bodies]
    seeds = [json.dumps(body).encode() for body in [*own, *_recorded(codecs)]]

    def run(case: bytes) -> None:
        body = parse_json(case, _LIMITS)
        for codec, _ in codecs.values():
            _read(codec, body)

    return Target(name, run, (InvalidRequest,), seeds, _WORDS)


def creation() -> Target:
    """/api/create and what is as short as /api/pull."""
    others: list[Json] = [
        {"model": "a", "files": {"config.json": f"sha256:{'0' * 64}"}},
        {"name": "x", "stream": False},
    ]

    def run(case: bytes) -> None:
        body = parse_json(case, _LIMITS)
        for parse in (parse_create, streamed, lambda body: named(body, "model", "name")):
            _answered(parse, body)

    seeds = [json.dumps(body).encode() for body in (_CREATION, *others)]
    return Target("creation", run, (InvalidRequest,), seeds, _WORDS, parse_errors_may_quote=True)


def grammars() -> Target:
    """What an answer is to be held to, up to the words that the compiler is given."""
    codec = openai.ChatCodec()
    strict = {"type": "json_schema", "json_schema": {"schema": _SCHEMA}}
    bodies: list[Json] = [
        _TURNS | {"response_format": strict},
        _TURNS | {"tools": [_TOOL], "tool_choice": "required"},
        _TURNS | {"guided_regex": "[a-z]{2,5}(x|y)"},
        _TURNS | {"guided_json": {"anyOf": [_SCHEMA, {"allOf": [{"$ref": "#"}]}]}},
    ]

    def run(case: bytes) -> None:
        try:
            request = codec.parse(parse_json(case, _LIMITS), id="abc", now=0.0).request
        except (InvalidRequest, ModelNotFound):
            return
        if is_held(request):
            for source in sources_of(request):
                assert source.text

    seeds = [json.dumps(body).encode() for body in bodies]
    words = [
        *_WORDS, b'"$ref"', b'"#/$defs/b"', b'"allOf"', b'"anyOf"', b'"oneOf"', b'"items"', b'"#"',
        b'"prefixItems"', b'"patternProperties"', b'"minimum"', b'"pattern"', b'"(?=a)"',
    ]  # fmt: skip
    return Target("grammars", run, (BadGrammar,), seeds, words, parse_errors_may_quote=True)


def _read(codec: Codec, body: Json) -> None:
    call = _answered(lambda body: codec.parse(body, id="abc", now=0.0), body, codec)
    if call is not None:
        assert _CARRIED.decode(msgspec.msgpack.encode(call)) == call
        to_json(codec.render_action(call, 0.0))


def _answered(parse: Callable[[Json], Any], body: Json, codec: Codec | None = None) -> Any:
    """None for what is refused as it should be."""
    try:
        return parse(body)
    except (InvalidRequest, ModelNotFound) as error:
        _check(error)
        if codec is not None:
            to_json(codec.render_error(error))
    return None


def _check(error: MlxdError) -> None:
    assert 400 <= STATUS[error.code] < 500
    assert not flaw_in_words(error.message, quotes=True), flaw_in_words(error.message)


def _recorded(names: dict[str, Any]) -> Iterator[Any]:
    """Bodies that tests refuse."""
    for name in names:
        file = _DATA / "bad" / f"{name}.json"
        if file.exists():
            yield from (row[0] for row in json.loads(file.read_text()))
