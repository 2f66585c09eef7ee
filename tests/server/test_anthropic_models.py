"""Anthropic's list of models, a page at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.policy.schema.limits import Tokens
from mlxd.server.anthropic_models import _model, page

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
    ("mode", "context", "most"),
    [("enforce", 500, 100), ("enforce", 50, 50), ("dry_run", 500, 500), ("off", 500, 500)],
)
def test_no_more_input_is_promised_than_policy_takes(mode: Any, context: int, most: int) -> None:
    card: Any = SimpleNamespace(name="m", modified=0.0, context=context)
    told = _model(card, Tokens(max_prompt=100, max_output=20, mode=mode))
    assert (told["max_input_tokens"], told["max_tokens"]) == (most, 20)


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
