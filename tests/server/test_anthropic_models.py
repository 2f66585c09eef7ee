"""Anthropic's list of models, a page at a time."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.server.anthropic_models import page

MODELS = [{"id": id} for id in "abcde"]


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ({}, "abcde", False),
        ({"limit": "2"}, "ab", True),
        ({"limit": "5"}, "abcde", False),
        ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "c"}, "de", False),
        ({"after_id": "e"}, "", False),
        ({"limit": "2", "before_id": "d"}, "bc", True),
        ({"limit": "2", "before_id": "c"}, "ab", False),
        ({"before_id": "a"}, "", False),
    ],
)
def test_a_page(query: Any, ids: str, more: bool) -> None:
    assert page(MODELS, query) == {
        "data": [{"id": id} for id in ids],
        "has_more": more,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
    }


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "x"},
        {"limit": "\u0662"},
        {"limit": "9" * 5000},
        {"after_id": "z"},
        {"before_id": "z"},
    ],
)
def test_a_page_that_is_not_there(query: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        page(MODELS, query)
    assert caught.value.param in query
