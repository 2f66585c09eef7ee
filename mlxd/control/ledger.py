"""The ledger of bytes: what is promised to which model, what of it is taken, what is free. Pure.

A worker has a promise, its budget and the buffers that it may keep beside it. What it holds is
missing from what the machine reports as available; what it does not hold yet is not. So what is
free for a new promise is what is available, less the reserve, less every promise's open part.

Beside its promise it may be lent room for beginnings of prompts (lending.py). That is no promise:
what it holds of a loan counts as free, because it gives it back when it is told to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from mlxd.control.memory import MemoryReading
from mlxd.control.worker import Worker
from mlxd.ipc import messages as ipc
from mlxd.policy.schema import Memory

_GIB = 2**30
_MIB = 2**20
_RESERVE = 4 * _GIB
_CACHE = (16 * _MIB, _GIB)
"""The least and the most of freed buffers that a worker keeps where policy does not say."""
_CACHE_SHARE = 32
PROCESS_BYTES = 72 * _MIB
"""Of a worker's process beside its engine: 57 to 90 MiB were seen with small vocabularies."""


@dataclass(frozen=True, slots=True)
class Account:
    """One model's share of memory."""

    promised: int
    held: int
    """As its worker measured it last, but for `kept`; 0: not yet."""
    kept: int = 0
    """What it holds of beginnings of prompts."""
    lent: int = 0
    """What it may hold of those."""
    weights: int = 0
    """Of its model's files; 0: not known."""

    @property
    def open(self) -> int:
        """What it may still take of its promise."""
        return max(0, self.promised - self.held)

    @property
    def share(self) -> int:
        """What others may have once it is gone, beside what it may be told to give back before."""
        return max(self.promised, self.held) + self.overdue

    @property
    def all(self) -> int:
        """What it holds."""
        return self.held + self.kept

    @property
    def lendable(self) -> int:
        """What it gives back when it is told to."""
        return min(self.kept, self.lent)

    @property
    def overdue(self) -> int:
        """What it was told to give back and still holds."""
        return self.kept - self.lendable


def free_bytes(
    reading: MemoryReading | None, reserve: int, accounts: Iterable[Account], working_set: int
) -> int | None:
    """For a new promise; below 0 where the present ones are too much. None: nobody can tell.

    `working_set` is what the GPU recommends to hold at most; 0: it recommends nothing.
    """
    shares = list(accounts)
    bounds = []
    if reading is not None:
        given_back = reading.available + sum(share.lendable for share in shares)
        bounds.append(given_back - reserve - sum(share.open for share in shares))
    if working_set:
        bounds.append(working_set - sum(share.share for share in shares))
    return min(bounds, default=None)


def reserve_of(memory: Memory, total: int) -> int:
    """What no load may take: memory.reserve.system."""
    wanted = memory.reserve.system
    return min(_RESERVE, total // 10) if wanted == "auto" else int(wanted)


def held_by(worker: Worker | None) -> int:
    """Bytes that a worker's engine holds, by its own last word."""
    return worker.memory.active + worker.memory.cache if worker is not None else 0


def kept_by(worker: Worker | None) -> int:
    """Of those, what beginnings of prompts take."""
    return worker.memory.prefix if worker is not None else 0


def promised_by(budget: ipc.Budget) -> int:
    """What nobody takes back."""
    return budget.bytes + budget.cache_bytes


def first_budget(needed: int, memory: Memory) -> ipc.Budget:
    """Of a model that takes `needed` bytes with its first generation, as policy limits it."""
    limits = memory.worker_limits
    size = (
        needed if limits.mlx_memory_limit == "auto" else min(needed, int(limits.mlx_memory_limit))
    )
    low, high = _CACHE
    auto = min(max(size // _CACHE_SHARE, low), high)
    cache = auto if limits.mlx_cache_limit == "auto" else int(limits.mlx_cache_limit)
    wired = size + cache if limits.wired_limit == "auto" else int(limits.wired_limit)
    return ipc.Budget(
        bytes=size, most=0, cache_bytes=cache, wired_bytes=wired, exclusive=_exclusive(memory)
    )


def left_beside(bare: ipc.Budget, available: int) -> int:
    """Bytes that may be kept for a first generation beside a load's budget that keeps none; below 0
    where not even that fits. What MLX caches grows with them.
    """
    left = available - PROCESS_BYTES - promised_by(bare)
    return left * _CACHE_SHARE // (_CACHE_SHARE + 1)


def _exclusive(memory: Memory) -> bool:
    """Several processes that use Metal at once are known to bring a machine down."""
    wanted = memory.gpu_exclusive
    return sys.platform == "darwin" if wanted == "auto" else wanted
