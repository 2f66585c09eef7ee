"""A process that can start no thread more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def no_threads() -> Iterator[None]:
    """None can be started in here; those that run stay so."""

    def none(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with patch.object(threading.Thread, "start", none):
        yield
