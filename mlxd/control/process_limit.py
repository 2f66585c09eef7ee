"""The hard limit on a worker's resident memory: policy's own, or one that follows its budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import psutil

from mlxd.control.measures import GuardedWorker
from mlxd.ipc import messages as ipc
from mlxd.policy.schema.memory import WorkerLimits

_AUTO_BESIDE_BUDGET = 2 * 2**30
"""What an interpreter, its libraries and mapped files may take beside twice the budget."""


@dataclass(frozen=True, slots=True)
class Oversized:
    """A worker whose process holds more than it may, in bytes."""

    worker: GuardedWorker
    resident: int
    limit: int


def oversized(
    workers: Iterable[GuardedWorker], limits: WorkerLimits, resident_of: Callable[[int], int | None]
) -> Iterator[Oversized]:
    """Those that are to be ended."""
    for worker in workers:
        limit = limit_of(worker.budget, limits, worker.memory.prefix)
        resident = resident_of(worker.pid) if limit is not None else None
        if limit is not None and resident is not None and resident > limit:
            yield Oversized(worker, resident, limit)


def limit_of(budget: ipc.Budget | None, limits: WorkerLimits, kept: int = 0) -> int | None:
    """None: there is none. `kept`: what it holds of earlier prompts, which it may be about to give
    back.
    """
    if limits.rss_hard != "auto":
        return int(limits.rss_hard)
    if budget is None or budget.bytes == 0:
        return None
    return 2 * budget.bytes + max(budget.prefix_bytes, kept) + _AUTO_BESIDE_BUDGET


def private_of(pid: int) -> int:
    """What a process holds of memory that no file backs, as far as the system tells; else 0."""
    try:
        seen = psutil.Process(pid).memory_info()
    except (OSError, psutil.Error):
        return 0
    return max(0, int(seen.rss) - int(getattr(seen, "shared", 0)))


def resident_of(pid: int) -> int | None:
    """None when the process is gone or cannot be looked at."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error):
        return None
