"""`mlxd status`, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.cli.status import _queue


@pytest.mark.parametrize(
    ("waiting", "most", "line"),
    [
        (0, 0, "off: who finds no slot is refused"),
        (0, 50, "0 of 50 wait; one more would for: high 0 s, medium 0 s, low 12.5 s"),
        (3, 0, "3 of 0 wait; one more would for: high 0 s, medium 0 s, low 12.5 s"),
    ],
)
def test_the_queue_is_one_line(waiting: int, most: int, line: str) -> None:
    health: Any = {
        "queue": {"waiting": waiting, "max_waiting": most},
        "expected_wait_seconds": {"high": 0.0, "medium": 0.0, "low": 12.5},
    }
    assert _queue(health) == line
