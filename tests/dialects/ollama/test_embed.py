"""What bodies of /api/embed and /api/embeddings mean, and what is answered."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import Completion, Embedding, Finished, Started
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call
from mlxd.dialects.ollama import EmbedCodec, EmbeddingsCodec

CODEC, OLD = EmbedCodec(), EmbeddingsCodec()


def parse(**body: Any) -> Call:
    return CODEC.parse({"model": "M:1b", "input": "hi"} | body, id="a", now=5.0)


def completion(*numbers: float, tokens: int = 3, waited: float = 0.0) -> Completion:
    return Completion(
        started=Started(tokens, wait_seconds=waited),
        embedding=Embedding(struct.pack(f"<{len(numbers)}f", *numbers)),
        finished=Finished("stop", tokens, 0),
    )


def test_the_least_that_is_valid() -> None:
    call = parse()
    assert call.requests == (
        GenerationRequest("M:1b", want="embedding", text="hi", truncate=True, stream=False),
    )
    assert (call.action, call.dimensions) == ("generate", None)


def test_each_text_is_a_request() -> None:
    call = parse(input=["a", "", "c"], truncate=False, keep_alive=60, dimensions=2)
    assert [request.text for request in call.requests] == ["a", "", "c"]
    assert not any(request.truncate for request in call.requests)
    assert {request.keep_alive for request in call.requests} == {60.0}
    assert call.dimensions == 2


@pytest.mark.parametrize("value", ["", [], None])
def test_without_input_the_model_is_loaded_or_let_go(value: Any) -> None:
    assert parse(input=value).action == "load"
    call = parse(input=value, keep_alive=0)
    assert call.action == "unload"
    assert CODEC.render_action(call, 6.0) == {"model": "M:1b", "embeddings": []}


def test_names_are_taken_in_any_case_and_no_dimension_is_all() -> None:
    call = CODEC.parse({"Model": "m", "INPUT": "x", "dimensions": -1}, id="a", now=0.0)
    assert (call.request.text, call.dimensions) == ("x", None)


def test_no_more_inputs_than_can_be_served() -> None:
    assert len(parse(input=["x"] * 2048).requests) == 2048
    with pytest.raises(InvalidRequest, match="input takes at most 2048 texts"):
        parse(input=["x"] * 2049)


def test_vectors_are_one_long_and_tokens_are_counted() -> None:
    call = parse(input=["a", "b"])
    made = [completion(3.0, 4.0, waited=2.0), completion(0.0, -2.0, tokens=4, waited=3.0)]
    answer = CODEC.render(call, made, 9.0)
    first, second = answer.pop("embeddings")
    assert first == pytest.approx([0.6, 0.8])
    assert second == pytest.approx([0.0, -1.0])
    assert answer == {
        "model": "M:1b",
        "total_duration": 4_000_000_000,
        "load_duration": 2_000_000_000,
        "prompt_eval_count": 7,
    }


def test_fewer_dimensions_are_one_long_again_and_more_are_ignored() -> None:
    for dimensions, wanted in ((1, [1.0]), (9, [0.6, 0.8])):
        answer = CODEC.render(parse(dimensions=dimensions), [completion(3.0, 4.0)], 9.0)
        assert answer["embeddings"][0] == pytest.approx(wanted)


def test_the_old_endpoint_gives_the_vector_as_it_is() -> None:
    call = OLD.parse({"model": "m", "prompt": "hi"}, id="a", now=0.0)
    assert call.requests == (
        GenerationRequest("m", want="embedding", text="hi", truncate=True, stream=False),
    )
    assert OLD.render(call, [completion(3.0, 4.0)], 1.0) == {"embedding": [3.0, 4.0]}


def test_the_old_endpoint_without_a_prompt_loads() -> None:
    call = OLD.parse({"model": "m"}, id="a", now=0.0)
    assert call.action == "load"
    assert OLD.render_action(call, 1.0) == {"embedding": []}
