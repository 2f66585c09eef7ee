"""What the start ledger does to loads."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mlxd.core import durable
from mlxd.daemon.hold import begun
from mlxd.policy.load import load


def test_a_full_disk_ends_no_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    assert not begun(load(), tmp_path).held
