"""Says on stdout how it goes: what happens, at once, and progress often enough to watch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from mlxd.ipc.pulling import Fetched, Told, encode

_EVERY_SECONDS = 0.06
"""Of each file."""


class Telling:
    """Lines to whoever started the process; from any thread."""

    def __init__(
        self,
        stream: BinaryIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stdout.buffer
        self._now = now
        self._lock = threading.Lock()

    def tell(self, told: Told) -> None:
        with self._lock:
            self._stream.write(encode(told))
            self._stream.flush()

    def progress(self, digest: str, size: int) -> Callable[[int], None]:
        """Something to call with the bytes of a file that are here; most calls say nothing."""
        last = float("-inf")

        def tell(have: int) -> None:
            nonlocal last
            now = self._now()
            if have == size or now - last >= _EVERY_SECONDS:
                last = now
                self.tell(Fetched(digest, have))

        return tell
