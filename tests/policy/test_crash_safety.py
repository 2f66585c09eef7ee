"""kill -9 at any line of a reload or rollback: the next boot has the old or the new, never a mix.

The values of several files must fit together, and one file comes, another one goes. Twenty points
for each deed here; benchmarks/policy_sweeps.py has hundreds.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import policy_crash
from tests.support.policy_crash import Sweep, read_sweep

Killed = Callable[..., Sweep]


@pytest.fixture
def killed(tmp_path: Path) -> Killed:
    """Sweep a deed, in a process that may fork."""

    def sweep(deed: str, points: int = 8, writing_points: int = 12) -> Sweep:
        command = [sys.executable, policy_crash.__file__, deed, str(points), str(writing_points)]
        done = subprocess.run(
            [*command, str(tmp_path)], capture_output=True, text=True, timeout=55, check=False
        )
        assert done.returncode == 0, done.stderr
        found = read_sweep(done.stdout)
        # How often the very last line runs is up to the threads; every other kill must hit.
        assert sum(not point.where for point in found.points) <= 2
        return found

    return sweep


def test_a_reload_killed_anywhere_leaves_what_the_operator_wrote(killed: Killed) -> None:
    found = killed("reload")

    assert found.booted() == {"new": 20}
    assert {point.without_the_folder for point in found.points} == {"old", "new"}
    assert found.problems() == []


def test_a_refused_reload_killed_anywhere_leaves_the_last_good_policies(killed: Killed) -> None:
    found = killed("refused", 10, 0)

    assert found.booted() == {"old": 10}
    assert {point.without_the_folder for point in found.points} == {"old"}
    assert found.problems() == []


def test_a_rollback_killed_anywhere_is_done_or_undone(killed: Killed) -> None:
    found = killed("rollback")

    assert set(found.booted()) == {"old", "new"}
    assert {point.without_the_folder for point in found.points} == {"old", "new"}
    assert found.problems() == []


def test_a_rollback_that_fails_may_be_killed_while_it_is_undone(killed: Killed) -> None:
    found = killed("rollback-undone", 0, 20)

    assert set(found.booted()) <= {"old", "new"}
    assert found.problems() == []


def test_a_boot_that_finishes_a_rollback_may_be_killed_as_well(killed: Killed) -> None:
    found = killed("finish", 4, 12)

    assert found.booted() == {"old": 16}
    assert found.problems() == []


def test_without_its_note_a_rollback_would_leave_a_mix_somewhere(killed: Killed) -> None:
    found = killed("rollback-without-note", 0, 16)

    assert any(booted.startswith("mix") for booted in found.booted())
