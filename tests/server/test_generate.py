"""How many answers one request may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call
from mlxd.policy.load import Override, load
from mlxd.server.generate import _check_choices

POLICIES: Any = load(None, [Override("limits.choices", "3", "a test")])


def call_of(count: int, **request: Any) -> Call:
    first, *more = [GenerationRequest(model="m", **request)] * count
    return Call("a", 0.0, "generate", first, tuple(more), plural="best_of")


def test_one_for_more_than_policy_allows_is_refused_with_its_line() -> None:
    _check_choices(call_of(3), POLICIES)
    with pytest.raises(InvalidRequest) as caught:
        _check_choices(call_of(4), POLICIES)
    assert caught.value.param == "best_of"
    assert caught.value.explained() == (
        "the request asks for 4 answers; at most 3 are given. Policy: limits.choices: 3 (a test)"
    )


def test_what_is_no_answer_is_not_limited_by_it() -> None:
    _check_choices(call_of(2048, want="embedding"), POLICIES)
