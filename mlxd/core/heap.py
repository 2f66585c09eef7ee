"""The C heap, where it is glibc's: what is free in it goes back to the system on demand."""

from __future__ import annotations

import sys
from typing import Any

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


class Heap:
    """Of this process."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def found(cls) -> Heap | None:
        """None where the C library has nothing of this to set."""
        if sys.platform != "linux":
            return None
        import ctypes  # which takes its time, and is not needed at once

        library = ctypes.CDLL(None)
        known = hasattr(library, "mallopt") and hasattr(library, "malloc_trim")
        return cls(library) if known else None

    def bound_arenas(self, most: int) -> None:
        """Threads share so many."""
        self._library.mallopt(_M_ARENA_MAX, most)

    def trim(self) -> None:
        """Some milliseconds for each 100 MB."""
        self._library.malloc_trim(0)
