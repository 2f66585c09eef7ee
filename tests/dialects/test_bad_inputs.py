"""What is refused, and in which words: each row of tests/data/dialects/bad is a body, the error,
its words and, where the API has it, the parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxd.core import errors
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.base import Codec

BAD = Path(__file__).parents[1] / "data" / "dialects" / "bad"
CODECS: dict[str, Codec] = {
    "anthropic.messages": anthropic.MessagesCodec(),
    "anthropic.count": anthropic.CountCodec(),
    "ollama.generate": ollama.GenerateCodec(),
    "ollama.chat": ollama.ChatCodec(),
    "ollama.embed": ollama.EmbedCodec(),
    "ollama.embeddings": ollama.EmbeddingsCodec(),
    "openai.chat": openai.ChatCodec(),
    "openai.completion": openai.CompletionCodec(),
    "openai.embeddings": openai.EmbeddingsCodec(),
    "openai.responses": openai.ResponsesCodec(),
}
ROWS = [
    pytest.param(name, row, id=f"{name}-{number}")
    for name in CODECS
    for number, row in enumerate(json.loads((BAD / f"{name}.json").read_text()))
]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_bad_body_is_refused_in_the_dialects_words(name: str, row: list[Any]) -> None:
    body, kind, words, *param = row
    with pytest.raises(errors.MlxdError) as caught:
        CODECS[name].parse(body, id="abc", now=0.0)
    assert type(caught.value) is getattr(errors, kind)
    assert caught.value.message == words
    assert param in ([], [caught.value.param])
