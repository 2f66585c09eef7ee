"""A folder of another user, in a test; and a disk without locks."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """What is below it nobody may look at but root, and this is not root."""
    root = os.geteuid() == 0
    base = Path(tempfile.gettempdir())
    for above in [one for one in folder.parents if root and one.is_relative_to(base)]:
        if above != base:
            above.chmod(0o755)
    folder.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk whose locks nobody serves any more."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("mlxd.core.instance.fcntl.flock", flock)
