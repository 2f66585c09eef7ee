"""What a client is told again, taken at once."""

from __future__ import annotations

from mlxd.server.told_records import Owed


def whole(owed: Owed | None) -> bytes:
    assert owed is not None, "there is no such record"
    found = b""
    while owed:
        found += owed.take()
    return found
