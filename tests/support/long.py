"""Cases that the long form of the suite has beside those of the short one (`make long`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def short(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """All cases are in the long form; in the short one are those that are `kept`."""
    known = list(cases)
    assert set(kept) <= set(known), "what is kept is one of them"
    return [_case(one, one not in kept) for one in known]


def in_turn(cases: Iterable[Any], ways: Iterable[Any]) -> list[Any]:
    """All cases in all ways are in the long form; in the short one each case in one way, by turns.
    For ways that lead to the same code.
    """
    known = list(ways)
    return [
        _case((case, way), number % len(known) != turn)
        for number, case in enumerate(cases)
        for turn, way in enumerate(known)
    ]


def _case(case: Any, is_long: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=[pytest.mark.slow] if is_long else [])
