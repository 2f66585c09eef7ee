"""kill -9 at any line of a reload or rollback: the next boot has the old or the new, no mix (R19).

The values of several files must fit together, and one file comes, another one goes. Twenty points
for a reload and a rollback here; benchmarks/policy_sweeps.py has hundreds.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxd.policy import rollback
from mlxd.policy.boot import boot
from mlxd.policy.history import history_of
from tests.support import policy_crash
from tests.support.policy_crash import NEW, OLD, Sweep, named, read_sweep
from tests.support.policy_daemon import HastyClock, holding, save_all

Killed = Callable[..., Sweep]
_GENERATION = {
    "version": 1, "folder": "", "digest": "", "at": 1.0, "trigger": "start", "by": "",
    "changes": [],
}  # fmt: skip
_NO_FILES: tuple[object, ...] = (None, [], 1, {"limits.yaml": 1})


@pytest.fixture
def killed(tmp_path: Path) -> Killed:
    """Sweep a deed, in a process that may fork."""

    def sweep(deed: str, points: int = 8, writing_points: int = 12) -> Sweep:
        command = [sys.executable, policy_crash.__file__, deed, str(points), str(writing_points)]
        done = subprocess.run(
            [*command, str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        found = read_sweep(done.stdout)
        # How often the very last line runs is up to the threads; every other kill must hit.
        assert sum(not point.where for point in found.points) <= 2
        return found

    return sweep


@pytest.mark.parametrize(
    ("points", "writing"), [(5, 7), pytest.param(8, 12, marks=pytest.mark.slow)]
)
def test_a_reload_killed_anywhere_leaves_what_the_operator_wrote(
    killed: Killed, points: int, writing: int
) -> None:
    found = killed("reload", points, writing)

    assert found.booted() == {"new": points + writing}
    assert {point.without_the_folder for point in found.points} == {"old", "new"}
    assert found.problems() == []


@pytest.mark.slow
def test_a_refused_reload_killed_anywhere_leaves_the_last_good_policies(killed: Killed) -> None:
    found = killed("refused", 6, 0)

    assert found.booted() == {"old": 6}
    assert {point.without_the_folder for point in found.points} == {"old"}
    assert found.problems() == []


@pytest.mark.slow
def test_a_rollback_killed_anywhere_is_done_or_undone(killed: Killed) -> None:
    found = killed("rollback")

    assert set(found.booted()) == {"old", "new"}
    assert {point.without_the_folder for point in found.points} == {"old", "new"}
    assert found.problems() == []


@pytest.mark.slow
def test_a_rollback_that_fails_may_be_killed_while_it_is_undone(killed: Killed) -> None:
    found = killed("rollback-undone", 0, 12)

    assert set(found.booted()) <= {"old", "new"}
    assert found.problems() == []


@pytest.mark.slow
def test_a_boot_that_finishes_a_rollback_may_be_killed_as_well(killed: Killed) -> None:
    found = killed("finish", 2, 6)

    assert found.booted() == {"old": 8}
    assert found.problems() == []


@pytest.mark.slow
def test_without_its_note_a_rollback_would_leave_a_mix_somewhere(killed: Killed) -> None:
    found = killed("rollback-without-note", 0, 48)

    assert any(booted.startswith("mix") for booted in found.booted())


@pytest.mark.parametrize(
    "left",
    [b"", b"\xff", b"[]", b"null", b'{"version": 2}',
     *(json.dumps({**_GENERATION, "files": files}).encode() for files in _NO_FILES)],
    ids=lambda left: repr(left[-20:]),
)  # fmt: skip
def test_what_is_no_generation_in_the_history_is_no_obstacle_to_a_boot(
    tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "lkg").mkdir()
    (tmp_path / "lkg" / "00000007.json").write_bytes(left)
    (tmp_path / "lkg" / "writing.json").write_bytes(left)
    (tmp_path / "policies").mkdir()

    booted = boot(tmp_path / "policies", (), history_of(tmp_path))
    assert booted.policies.generation == 8
    assert not (tmp_path / "lkg" / "writing.json").exists()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("pipe", ["limits.yaml", ".limits.yaml.new"])
def test_a_pipe_that_took_a_place_meanwhile_is_not_waited_for(tmp_path: Path, pipe: str) -> None:
    folder, history = tmp_path / "policies", history_of(tmp_path)
    save_all(folder, NEW)
    new = {name: raw.encode() for name, raw in NEW.items()}
    rolled_back = {**new, "limits.yaml": OLD["limits.yaml"].encode()}
    history.folder.mkdir()
    note = history.folder / "writing.json"
    note.write_bytes(rollback._encoded(folder, new, rolled_back))
    (folder / pipe).unlink(missing_ok=True)
    os.mkfifo(folder / pipe)

    rollback.finish(history)
    assert not note.exists()
    if pipe != "limits.yaml":
        assert (folder / "limits.yaml").read_text() == OLD["limits.yaml"]


async def test_a_disk_that_fills_up_during_a_rollback_leaves_the_present_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write, written = tmp_path / "policies", rollback._write, 0

    def write_until_full(temporary: Path, raw: bytes, file: Path) -> None:
        nonlocal written
        written += 1
        if written > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(temporary, raw, file)

    save_all(folder, OLD)
    async with holding(folder, tmp_path / "state", HastyClock()) as holder:
        save_all(folder, NEW)
        await holder.reloader.reload("admin")
        monkeypatch.setattr(rollback, "_write", write_until_full)
        outcome = await holder.reloader.rollback(1)
        monkeypatch.undo()

        assert (outcome.result, "No space left" in str(outcome)) == ("refused", True)
        await holder.reloader.look()
        assert named(holder.store.current) == "new"
