from __future__ import annotations

import os

import pytest

from mlxd.control.process_limit import limit_of, private_of, resident_of
from mlxd.ipc import messages as ipc
from mlxd.policy.schema.memory import WorkerLimits

GIB = 2**30


@pytest.mark.parametrize(
    ("written", "budget", "limit"),
    [
        ("auto", None, None),
        ("auto", 0, None),
        ("auto", 3 * GIB, 8 * GIB),
        ("4GiB", None, 4 * GIB),
        ("4GiB", 3 * GIB, 4 * GIB),
    ],
)
def test_a_limit_is_policys_own_or_follows_the_budget(
    written: str, budget: int | None, limit: int | None
) -> None:
    limits = WorkerLimits.model_validate({"rss_hard": written})
    given = ipc.Budget(budget, 0, 0) if budget is not None else None
    assert limit_of(given, limits) == limit


def test_what_is_kept_of_earlier_prompts_is_beside_it() -> None:
    """Also of what is to be given back, and is not yet."""
    limits = WorkerLimits()
    for lent, kept, more in ((4, 1, 4), (0, 3, 3)):
        budget = ipc.Budget(GIB, 0, 0, prefix_bytes=lent * GIB)
        assert limit_of(budget, limits, kept * GIB) == (2 + 2 + more) * GIB


def test_what_a_process_holds_can_be_read_and_of_one_that_is_gone_nothing() -> None:
    held = resident_of(os.getpid())
    assert held is not None
    assert held > 2**20
    assert resident_of(2**22 + 1) is None


def test_what_no_file_backs_is_told_and_nothing_of_a_process_that_is_gone() -> None:
    held = resident_of(os.getpid())
    assert held is not None
    assert 2**20 < private_of(os.getpid()) < held + 2**24
    assert private_of(2**22 + 1) == 0
