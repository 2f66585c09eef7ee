"""The pure decision what each worker may keep of earlier prompts: memory that nobody needs, lent
until somebody does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from mlxd.control.ledger import Account
from mlxd.control.memory import MemoryReading
from mlxd.policy.schema import Memory

K = TypeVar("K", bound=Hashable)

_MOST = 16 * 2**30
"""Of one worker, where policy does not say."""
_OF_WEIGHTS, _LEAST = 4, 64 * 2**20
"""Where policy does not say, a worker keeps so many times what its model's weights take, at least
64 MiB: what a small model read is read again in no time, and gigabytes of it are nobody's gain."""
_PART = 4
"""Where policy does not say, all loans together are this part of what is free below the warning
mark: the rest is for loads, for answers and for other processes."""
_RISE = 4
"""A loan is raised when it grows by this part of itself, so that none changes with each breath of
the machine; it is lowered at once."""


def loans(
    memory: Memory,
    reading: MemoryReading | None,
    free: int | None,
    borrowers: Mapping[K, Account],
    *,
    others: int,
    left: float,
) -> dict[K, int]:
    """What each of `borrowers` may keep from now on.

    `free`: for new promises, what is lent included; None: nobody can tell. `others`: what those who
    borrow nothing may still take. `left`: the part that memory's marks leave of it, 1 of all.
    """
    wanted = memory.prefix_cache.memory
    if not borrowers or wanted == "off" or left <= 0:
        return dict.fromkeys(borrowers, 0)
    if wanted != "auto":
        room = free // len(borrowers) if free is not None else int(wanted)
        most = dict.fromkeys(borrowers, min(int(wanted), max(0, room)))
    else:
        each = _below_mark(memory, reading, free, borrowers, others) // len(borrowers)
        most = {key: min(each, _worth(account)) for key, account in borrowers.items()}
    return {key: _steady(account.lent, int(most[key] * left)) for key, account in borrowers.items()}


def _worth(account: Account) -> int:
    """What one worker keeps at most, where policy does not say."""
    return min(_MOST, max(_LEAST, _OF_WEIGHTS * account.weights) if account.weights else _MOST)


def _below_mark(
    memory: Memory,
    reading: MemoryReading | None,
    free: int | None,
    borrowers: Mapping[K, Account],
    others: int,
) -> int:
    """A part of what is free below the warning mark, were nothing kept; never more than is free."""
    if free is None:
        return 0
    room = free
    if reading is not None:
        above = (1.0 - float(memory.watermarks.warning.enter)) * reading.total
        kept = sum(account.kept for account in borrowers.values())
        open = sum(account.open for account in borrowers.values()) + others
        room = min(free, int(reading.available + kept - open - above))
    return max(0, room) // _PART


def _steady(before: int, now: int) -> int:
    return now if now < before or now >= before + before // _RISE else before
