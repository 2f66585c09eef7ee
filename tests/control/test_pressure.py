from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from mlxd.control.pressure import (
    OomKills,
    Pressure,
    Sustained,
    linux_pressure,
    macos_pressure,
    read_pressure,
)
from mlxd.control.watermarks import Level
from mlxd.core.clock import ManualClock


def psi(some: float, full: float = 0.0) -> str:
    rest = "avg60=99.00 avg300=99.00 total=1"
    return f"some avg10={some:.2f} {rest}\nfull avg10={full:.2f} {rest}\n"


def machine(root: Path, stalled: float) -> Path:
    folder = root / "proc/pressure"
    folder.mkdir(parents=True)
    (folder / "memory").write_text(psi(stalled))
    return root


def own_group(root: Path, stalled: float) -> Path:
    proc, group = root / "proc/self", root / "cg"
    proc.mkdir(parents=True)
    group.mkdir()
    (proc / "cgroup").write_text("0::/\n")
    (proc / "mountinfo").write_text("41 31 0:38 / /cg rw - cgroup2 cgroup2 rw\n")
    (group / "memory.pressure").write_text(psi(stalled))
    return root


@pytest.mark.parametrize(
    ("stalled", "level"),
    [(0, Level.NORMAL), (29.9, Level.NORMAL), (30, Level.WARNING), (60, Level.CRITICAL)],
)
def test_the_time_that_processes_stall_is_a_level(
    tmp_path: Path, stalled: float, level: Level
) -> None:
    assert linux_pressure(machine(tmp_path, stalled)) == Pressure(level, stalled / 100)


def test_the_worst_of_the_machine_and_of_the_own_group_counts(tmp_path: Path) -> None:
    found = linux_pressure(own_group(machine(tmp_path, 10), 45))
    assert found == Pressure(Level.WARNING, 0.45)


def test_a_kernel_that_does_not_tell_says_nothing(tmp_path: Path) -> None:
    assert linux_pressure(tmp_path) is None
    (machine(tmp_path, 1) / "proc/pressure/memory").write_text("nonsense\n")
    assert linux_pressure(tmp_path) is None


def test_a_process_that_the_kernel_killed_for_memory_is_noticed(tmp_path: Path) -> None:
    events = own_group(tmp_path, 0) / "cg/memory.events"
    events.write_text("low 0\noom 4\noom_kill 3\n")
    clock = ManualClock()
    kills = OomKills(clock, tmp_path)
    assert not kills.lately()
    events.write_text("low 0\noom 5\noom_kill 4\n")
    assert kills.lately()
    clock.advance(10)
    assert not kills.lately()
    events.unlink()
    assert not kills.lately()


def test_a_count_that_could_not_be_read_for_a_moment_is_no_other(tmp_path: Path) -> None:
    events = own_group(tmp_path, 0) / "cg/memory.events"
    events.write_text("oom_kill 3\n")
    kills = OomKills(ManualClock(), tmp_path)
    events.rename(away := tmp_path / "away")
    kills.look()
    away.rename(events)
    assert not kills.lately()


def test_whoever_is_killed_later_is_not_taken_for_one_of_those(tmp_path: Path) -> None:
    """A worker that loads accuses nobody when the kernel kills it: nobody asks."""
    events = own_group(tmp_path, 0) / "cg/memory.events"
    events.write_text("oom_kill 0\n")
    clock = ManualClock()
    kills = OomKills(clock, tmp_path)
    events.write_text("oom_kill 1\n")
    kills.look()
    clock.advance(10)
    assert not kills.lately()


def test_so_is_each_of_those_that_it_killed_at_once(tmp_path: Path) -> None:
    events = own_group(tmp_path, 0) / "cg/memory.events"
    events.write_text("oom_kill 0\n")
    clock = ManualClock()
    kills = OomKills(clock, tmp_path)
    events.write_text("oom_kill 2\n")
    assert kills.lately()
    clock.advance(0.5)
    assert kills.lately()


def test_where_nobody_counts_kills_there_are_none(tmp_path: Path) -> None:
    assert not OomKills(ManualClock(), tmp_path).lately()


def sysctl(level: int, status: int = 0):
    """As sysctlbyname answers on macOS."""

    def by_name(name, value, size, new, new_size):
        assert (name, new, new_size) == (b"kern.memorystatus_vm_pressure_level", None, 0)
        assert size._obj.value == ctypes.sizeof(ctypes.c_int)
        value._obj.value = level
        return status

    return by_name


@pytest.mark.parametrize(
    ("number", "level"),
    [(1, Level.NORMAL), (2, Level.WARNING), (4, Level.CRITICAL), (0, Level.NORMAL)],
)
def test_the_levels_of_macos(number: int, level: Level) -> None:
    assert macos_pressure(sysctl(number)) == Pressure(level)


def test_a_sysctl_that_fails_or_is_not_there_says_nothing() -> None:
    assert macos_pressure(sysctl(4, status=-1)) is None
    assert macos_pressure(None) is None


def test_this_system_can_be_asked() -> None:
    found = read_pressure()
    assert found is None or found.level in Level


def observed(pressures, every: float = 10.0) -> list[Level]:
    sustained = Sustained()
    return [sustained.observe(one, i * every) for i, one in enumerate(pressures)]


def test_a_stall_counts_once_it_has_lasted() -> None:
    calm, some = Pressure(Level.NORMAL, 0.1), Pressure(Level.WARNING, 0.4)
    most = Pressure(Level.CRITICAL, 0.9)
    assert observed([some, some, most, most, most, most]) == [0, 0, 0, 1, 1, 2]
    assert observed([most, most, most, calm, most, most]) == [0] * 6
    assert observed([most, most, most, most, calm]) == [0, 0, 0, 2, 0]


def test_the_level_of_macos_counts_at_once_and_no_word_is_no_pressure() -> None:
    assert observed([Pressure(Level.CRITICAL), None]) == [2, 0]
