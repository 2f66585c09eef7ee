"""Ids of tool calls."""

from __future__ import annotations

import re

from mlxd.dialects.tool_calls import tool_call_id


def test_ids_have_the_known_form_and_differ() -> None:
    ids = [tool_call_id(call, index) for call in ("abc", "abd") for index in range(50)]
    assert len(set(ids)) == 100
    assert all(re.fullmatch("call_[a-z0-9]{8}", id) for id in ids)
    assert re.fullmatch("toolu_[a-z0-9]{8}", tool_call_id("abc", 0, prefix="toolu_"))


def test_the_same_call_has_the_same_id() -> None:
    assert tool_call_id("abc", 0) == tool_call_id("abc", 0)
