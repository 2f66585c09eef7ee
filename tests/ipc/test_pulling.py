"""Lines of a process that pulls."""

from __future__ import annotations

import pytest

from mlxd.ipc import pulling


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"type": "pulled"',
        b'{"type": "failed", "kind": "not_found", "message": 1}',
        b'{"type": "failed", "kind": "not_found", "message": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_line_of_the_protocol_is_told(line: bytes) -> None:
    with pytest.raises(pulling.BrokenLine):
        pulling.decode(line)
