"""What MLX may hold, and what it does hold: the only file that sets or reads its memory limits."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import mlx.core as mx

from mlxd.core.heap import Heap
from mlxd.ipc.messages import Budget, Memory

TRIM_SECONDS = 5.0
"""Between two times that the C heap gives back what it has free: small arrays on a CPU live there.
Else what lies free between arrays that stay grows by megabytes for each thousand requests.
"""

_EXHAUSTED = re.compile(
    r"malloc|unable to allocate|insufficient memory|bad_alloc|out of memory", re.IGNORECASE
)


class Allocator:
    """The process's one allocator, as a part that a test can replace."""

    def __init__(self, heap: Heap | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`heap`: None where there is none to trim."""
        self._heap = heap
        self._clock = clock
        self._trimmed = clock()
        self._unlimited = mx.get_memory_limit()
        """MLX's own, for a budget without a limit."""
        self.kept: Callable[[], int] = lambda: 0
        """Bytes of earlier prompts that are kept."""
        self._applied: Budget | None = None

    def apply(self, budget: Budget) -> None:
        """At once. On a GPU an allocation beyond the limit first waits for running work, and frees
        kept buffers; on a CPU the number is only kept.
        """
        self._applied = budget
        limited = budget.bytes > 0
        mx.set_memory_limit(budget.bytes + budget.prefix_bytes if limited else self._unlimited)
        mx.set_cache_limit(budget.cache_bytes)
        if mx.metal.is_available():
            mx.set_wired_limit(min(budget.wired_bytes, working_set()))

    def reapply(self) -> None:
        """mlx-lm's generators set limits of their own as they come and go."""
        if self._applied is not None:
            self.apply(self._applied)

    def active(self) -> int:
        return mx.get_active_memory()

    def measure(self) -> Memory:
        active, cache, peak = mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory()
        return Memory(active, cache, peak, self.kept())

    def trim(self) -> None:
        """Give kept buffers back to the system; now and then what lies between others, too."""
        mx.clear_cache()
        now = self._clock()
        if self._heap is not None and now >= self._trimmed + TRIM_SECONDS:
            self._heap.trim()
            self._trimmed = now

    def tidy(self) -> None:
        """The same where it would give back what is free in the heap, too; else nothing."""
        if self._heap is not None and self._clock() >= self._trimmed + TRIM_SECONDS:
            self.trim()

    def reset_peak(self) -> None:
        mx.reset_peak_memory()


def working_set() -> int:
    """What the GPU recommends to hold at most; 0: it recommends nothing."""
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


def is_exhaustion(error: BaseException | None) -> bool:
    """Whether memory was what was missing: also where MLX says so in words only."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error)) is not None
