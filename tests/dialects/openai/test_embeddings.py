"""What bodies of /v1/embeddings mean, and what is answered."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.events import Completion, Embedding, Finished
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call
from mlxd.dialects.openai import EmbeddingsCodec

CODEC = EmbeddingsCodec()


def parse(**body: Any) -> Call:
    return CODEC.parse({"model": "m", "input": "hi", "user": "u"} | body, id="a", now=5.0)


def completion(*numbers: float, tokens: int = 3) -> Completion:
    vector = struct.pack(f"<{len(numbers)}f", *numbers)
    return Completion(embedding=Embedding(vector), finished=Finished("stop", tokens, 0))


def test_the_least_that_is_valid() -> None:
    call = parse()
    assert call.requests == (
        GenerationRequest("m", want="embedding", text="hi", user="u", stream=False),
    )
    assert (call.dimensions, call.base64) == (None, False)


@pytest.mark.parametrize(
    ("value", "texts", "ids"),
    [
        ("hi", ["hi"], [None]),
        (["a", "b"], ["a", "b"], [None, None]),
        ([1, 2, 3], [None], [(1, 2, 3)]),
        ([[1, 2], [3]], [None, None], [(1, 2), (3,)]),
        (["a", [3]], ["a", None], [None, (3,)]),
    ],
)
def test_every_form_of_input(value: Any, texts: list[Any], ids: list[Any]) -> None:
    requests = parse(input=value).requests
    assert [request.text for request in requests] == texts
    assert [request.token_ids for request in requests] == ids


def test_no_more_inputs_than_can_be_served() -> None:
    assert len(parse(input=["x"] * 2048).requests) == 2048
    with pytest.raises(InvalidRequest, match="input takes at most 2048 inputs"):
        parse(input=["x"] * 2049)


def test_an_answer_lists_vectors_in_order() -> None:
    answer = CODEC.render(parse(), [completion(3.0, 4.0), completion(0.0, -2.0)], 9.0)
    vectors = [data.pop("embedding") for data in answer["data"]]
    assert vectors == [pytest.approx([0.6, 0.8]), pytest.approx([0.0, -1.0])]
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "m",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


@pytest.mark.parametrize("dimensions", [None, 1])
def test_base64_holds_the_numbers_that_are_sent_as_floats(dimensions: int | None) -> None:
    made = [completion(3.0, 4.0)]
    numbers = CODEC.render(parse(dimensions=dimensions), made, 9.0)["data"][0]["embedding"]
    asked = parse(dimensions=dimensions, encoding_format="base64")
    text = CODEC.render(asked, made, 9.0)["data"][0]["embedding"]
    assert list(struct.unpack(f"<{len(numbers)}f", base64.b64decode(text))) == numbers


def test_more_dimensions_than_there_are_is_a_bad_request() -> None:
    with pytest.raises(InvalidRequest, match="dimensions must be at most 2 for") as caught:
        CODEC.render(parse(dimensions=3), [completion(3.0, 4.0)], 9.0)
    assert caught.value.param == "dimensions"
