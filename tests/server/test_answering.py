"""Which connections the end of a daemon waits for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.server.connection import Connection


@pytest.mark.parametrize(
    ("asked", "coming", "unread", "following", "answering"),
    [
        (False, 0, 0, False, False),
        (True, 0, 0, False, True),
        (False, 1, 0, False, True),
        (False, 0, 1, False, True),
        (True, 0, 0, True, False),
        (True, 0, 1, True, False),
    ],
)
def test_those_with_an_answer_that_is_made_or_read(
    asked: bool, coming: int, unread: int, following: bool, answering: bool
) -> None:
    connection: Any = SimpleNamespace(
        following=following,
        _request_in_progress=asked,
        _messages=[None] * coming,
        _wire=SimpleNamespace(get_write_buffer_size=lambda: unread),
    )
    assert Connection.answering.fget(connection) is answering  # type: ignore[attr-defined]
