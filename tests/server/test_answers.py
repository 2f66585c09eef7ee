"""Answers in JSON, whole and in parts."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mlxd.dialects.base import to_json
from mlxd.server import answers
from mlxd.server.action import Action, Answer
from mlxd.server.answers import json_response, large_json_response


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"embedding": [0.5, 1.5], "model": "\u2028"},
        {"model": "m", "embeddings": [[0.5], [1.5, 2.0]], "count": 2},
        {"values": {f"a.{n}": {"value": "1"} for n in range(300)}, "more": {}},
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
    elements += value.get("values", {}).values()
    assert all(element in written for element in elements)
    assert value not in written or not value
    whole = json_response(value)
    assert (large.body, large.headers) == (whole.body, whole.headers)


@pytest.mark.parametrize("values", [[{}] * 300, {str(n): {} for n in range(300)}])
async def test_a_large_answer_of_the_admin_side_is_written_beside_the_event_loop(
    values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[int] = set()

    def note(part: Any) -> bytes:
        threads.add(threading.get_ident())
        return to_json(part)

    async def act(_: web.BaseRequest) -> Answer:
        return {"values": values}, '"1-a"'

    monkeypatch.setattr(answers, "to_json", note)
    answer = await Action(act)(make_mocked_request("GET", "/"))
    assert isinstance(answer, web.Response)
    assert answer.body == to_json({"values": values})
    assert answer.headers["ETag"] == '"1-a"'
    assert threading.get_ident() not in threads
