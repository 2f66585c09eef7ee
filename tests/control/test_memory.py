from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from mlxd.control import memory
from mlxd.control.memory import MemoryReading, read_memory, read_swap

GIB = 2**30


class Machine:
    """What psutil says of a machine of 64 GiB."""

    total = 64 * GIB
    available = 16 * GIB


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[Machine]:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Machine)
    return Machine


def limited(root: Path, limit: int, used: int) -> Path:
    proc, group = root / "proc/self", root / "cg"
    proc.mkdir(parents=True)
    group.mkdir()
    (proc / "cgroup").write_text("0::/\n")
    (proc / "mountinfo").write_text("41 31 0:38 / /cg rw - cgroup2 cgroup2 rw\n")
    (group / "memory.max").write_text(str(limit))
    (group / "memory.current").write_text(str(used))
    (group / "memory.stat").write_text("inactive_file 0\n")
    return root


def test_without_a_limit_it_is_the_machines(machine: type[Machine], tmp_path: Path) -> None:
    reading = read_memory(tmp_path)
    assert reading is not None
    assert (reading.total, reading.available) == (64 * GIB, 16 * GIB)
    assert reading.used_percent == 75.0
    assert reading.limit_share is None


def test_a_limit_below_the_machines_memory_counts(machine: type[Machine], tmp_path: Path) -> None:
    reading = read_memory(limited(tmp_path, 8 * GIB, 7 * GIB))
    assert reading is not None
    assert (reading.total, reading.available) == (8 * GIB, GIB)
    assert (reading.machine_share, reading.limit_share) == (0.75, 0.875)
    assert reading.used_percent == 87.5


def test_a_full_machine_shows_below_a_limit_with_room(
    machine: type[Machine], tmp_path: Path
) -> None:
    reading = read_memory(limited(tmp_path, 20 * GIB, 0))
    assert reading is not None
    assert (reading.total, reading.available) == (20 * GIB, 16 * GIB)
    assert reading.used_percent == 75.0


def test_a_limit_above_the_machines_memory_takes_nothing(
    machine: type[Machine], tmp_path: Path
) -> None:
    reading = read_memory(limited(tmp_path, 128 * GIB, 0))
    assert reading is not None
    assert (reading.total, reading.available) == (64 * GIB, 16 * GIB)


def test_a_limit_that_cannot_be_read_is_none(machine: type[Machine], tmp_path: Path) -> None:
    root = limited(tmp_path, 8 * GIB, 0)
    (root / "cg/memory.current").write_text("what\n")
    reading = read_memory(root)
    assert reading is not None
    assert reading.total == 64 * GIB


@pytest.mark.parametrize("error", [OSError(), RuntimeError(), psutil.AccessDenied(), KeyError()])
def test_a_system_that_gives_no_reading_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse() -> None:
        raise error

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "swap_memory", refuse)
    assert read_memory() is None
    assert read_swap() is None


def test_two_numbers_are_enough_for_a_reading() -> None:
    assert MemoryReading(total=200, available=50).used_percent == 75.0
    assert memory.MemoryReading(total=0, available=0).used_percent == 0.0
