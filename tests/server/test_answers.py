"""Answers in JSON, whole and in parts."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.dialects.base import to_json
from mlxd.server import answers
from mlxd.server.answers import json_response, large_json_response


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"embedding": [0.5, 1.5], "model": "\u2028"},
        {"model": "m", "embeddings": [[0.5], [1.5, 2.0]], "count": 2},
        {"data": [{"index": 0, "embedding": [1.0]}], "none": None, "empty": [], "b": {"c": [[1]]}},
    ],
)
def test_a_large_answer_says_the_same_and_no_vector_is_written_with_another(
    value: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    def note(part: Any) -> bytes:
        written.append(part)
        return to_json(part)

    monkeypatch.setattr(answers, "to_json", note)
    large = large_json_response(value)
    elements = [one for key in ("embeddings", "data") for one in value.get(key, [])]
    assert all(element in written for element in elements)
    assert value not in written or not value
    whole = json_response(value)
    assert (large.body, large.headers) == (whole.body, whole.headers)
