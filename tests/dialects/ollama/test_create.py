"""The body of /api/create."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core import errors
from mlxd.core.preset import Preset
from mlxd.core.request import Message, Sampling
from mlxd.dialects.ollama.create import digest_of, parse_create

HEX = "0123456789abcdef" * 4


def test_everything_that_a_created_model_may_say() -> None:
    asked = parse_create(
        {
            "Model": "mine",
            "from": "tiny-a",
            "system": "Be kind.",
            "template": "{{ messages[0].content }}",
            "license": ["MIT", "and more"],
            "parameters": {"temperature": 0.5, "stop": ["x"], "num_ctx": 64, "num_predict": 9},
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "requires": "0.9.0",
            "info": {"a": 1},
        }
    )
    assert (asked.name, asked.source, asked.files, asked.stream) == ("mine", "tiny-a", (), True)
    assert asked.preset == Preset(
        system="Be kind.",
        template="{{ messages[0].content }}",
        messages=(Message("user", "a"), Message("assistant", "b")),
        sampling=Sampling(temperature=0.5),
        max_tokens=9,
        stop=("x",),
        context=64,
        license="MIT\nand more",
    )


def test_a_plain_one_says_nothing() -> None:
    body: dict[str, Any] = {"system": "", "messages": [], "parameters": None, "adapters": {}}
    asked = parse_create({"name": "mine", "from": "m", "quantize": "", "stream": False, **body})
    assert (asked.preset, asked.stream) == (Preset(), False)


def test_files_have_names_and_digests() -> None:
    files = {"config.json": f"sha256:{HEX}", "model-1.safetensors": f"sha256-{HEX}"}
    asked = parse_create({"model": "m", "files": files})
    assert asked.files == (("config.json", HEX), ("model-1.safetensors", HEX))
    assert [digest_of(text) for text in (HEX, "sha256:x", f"md5:{HEX}", f"sha256:{HEX}0")] == (
        [None] * 4
    )


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({}, "InvalidRequest", "model is required"),
        ({"model": " "}, "InvalidRequest", "model is required"),
        ({"model": 1}, "InvalidRequest", "model must be of type string, not integer"),
        ({"model": "m"}, "InvalidRequest", "neither 'from' or 'files' was specified"),
        ({"model": "m", "from": 1}, "InvalidRequest", "from must be of type string"),
        ({"model": "m", "from": "a", "stream": 1}, "InvalidRequest", "stream must be of type"),
        (
            {"model": "m", "from": "a", "files": {"a": f"sha256:{HEX}"}},
            "InvalidRequest",
            "together",
        ),
        ({"model": "m", "files": []}, "InvalidRequest", "files must be of type object"),
        ({"model": "m", "files": {"a": "b"}}, "InvalidRequest", "digest of a is not sha256"),
        ({"model": "m", "files": {"../a": f"sha256:{HEX}"}}, "InvalidRequest", "no name of a file"),
        ({"model": "m", "files": {".a": f"sha256:{HEX}"}}, "InvalidRequest", "no name of a file"),
        ({"model": "m", "files": {"a.py": f"sha256:{HEX}"}}, "InvalidRequest", "no name of a file"),
        ({"model": "m", "files": {"a.gguf": "x"}}, "UnsupportedFeature", "GGUF is not served"),
        ({"model": "m", "from": "a", "system": 1}, "InvalidRequest", "system must be of type"),
        ({"model": "m", "from": "a", "license": 1}, "InvalidRequest", "license must be of type"),
        ({"model": "m", "from": "a", "license": [1]}, "InvalidRequest", "license must be of type"),
        ({"model": "m", "from": "a", "template": "{{ .Prompt }}"}, "UnsupportedFeature", "Go's"),
        ({"model": "m", "from": "a", "messages": [{"role": "x"}]}, "InvalidRequest", "messages[0]"),
        ({"model": "m", "from": "a", "parameters": {"top_k": "x"}}, "InvalidRequest", '"top_k"'),
        (
            {"model": "m", "from": "a", "adapters": {"a": "b"}},
            "UnsupportedFeature",
            "models.models.<name>.adapter",
        ),
        ({"model": "m", "from": "a", "quantize": "q4_0"}, "UnsupportedFeature", "mlx-lm"),
        ({"model": "m", "from": "a", "renderer": "x"}, "UnsupportedFeature", "chat template"),
    ],
)
def test_what_is_refused(body: dict[str, Any], kind: str, words: str) -> None:
    with pytest.raises(errors.MlxdError) as caught:
        parse_create(body)
    assert type(caught.value) is getattr(errors, kind)
    assert words in caught.value.message
