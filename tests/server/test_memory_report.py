"""What is told of memory, and that status follows what is read now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlxd.control.memory import MemoryReading
from mlxd.control.monitors import Readings
from mlxd.control.watermarks import Level
from mlxd.control.worker import Worker
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from mlxd.server import memory_report

POLICIES = load()
GIB = 2**30


def readings(percent: float, **shares: float) -> Readings:
    memory = MemoryReading(1000 * GIB, round(10 * GIB * (100 - percent)))
    return Readings(memory, {"system_ram": percent / 100, **shares})


@pytest.mark.parametrize(
    ("percent", "status"),
    [(84.9, ""), (85.0, "warning"), (95.0, "warning"), (95.1, "critical"), (100.0, "critical")],
)
def test_status_is_critical_over_its_mark_and_warning_from_its_mark(
    percent: float, status: str
) -> None:
    assert memory_report.status(POLICIES, readings(percent), Level.NORMAL) == status


def test_a_full_gpu_is_no_better_than_full_memory() -> None:
    full = readings(10, gpu_working_set=0.97)
    assert memory_report.status(POLICIES, full, Level.NORMAL) == "critical"


def test_lasting_pressure_counts() -> None:
    assert memory_report.status(POLICIES, readings(10), Level.WARNING) == "warning"
    assert memory_report.status(POLICIES, readings(10), Level.CRITICAL) == "critical"


def test_memory_is_told_even_when_its_monitor_is_off() -> None:
    unwatched = Readings(MemoryReading(100, 1))
    assert memory_report.status(POLICIES, unwatched, Level.NORMAL) == "critical"


def test_no_reading_is_null_and_no_alarm() -> None:
    assert memory_report.status(POLICIES, Readings(None), Level.NORMAL) == ""
    assert memory_report.summary(POLICIES, None) == {
        "used_percent": None,
        "available_gb": None,
        "total_gb": None,
        "warning_threshold": 85.0,
        "critical_threshold": 95.0,
    }


def worker(memory: ipc.Memory, budget: ipc.Budget | None) -> Worker:
    return cast("Worker", SimpleNamespace(memory=memory, budget=budget))


@pytest.mark.parametrize(
    ("memory", "budget", "told"),
    [
        (ipc.Memory(0, 0, 0), None, None),
        (
            ipc.Memory(5, 3, 9, 2),
            ipc.Budget(20, 0, 0, prefix_bytes=4),
            {"budget": 20, "active": 5, "cache": 3, "peak": 9, "prefix": 2, "prefix_budget": 4},
        ),
        (
            ipc.Memory(5, 3, 9),
            ipc.Budget(0, 0, 0),
            {"budget": None, "active": 5, "cache": 3, "peak": 9, "prefix": 0, "prefix_budget": 0},
        ),
    ],
)
def test_a_workers_memory_is_told_once_it_is_known(
    memory: ipc.Memory, budget: ipc.Budget | None, told: dict[str, Any] | None
) -> None:
    assert memory_report.of_worker(worker(memory, budget)) == told
    assert memory_report.of_worker(None) is None
