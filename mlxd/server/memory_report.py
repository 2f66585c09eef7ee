"""What the daemon says of memory: in /health, and as metrics."""

from __future__ import annotations

import math
from typing import Any

from mlxd.control.memory import MemoryReading, read_swap
from mlxd.control.monitors import Readings
from mlxd.control.watermarks import Level
from mlxd.control.worker import Worker
from mlxd.policy.policy_set import PolicySet
from mlxd.server.parts import Parts
from mlxd.telemetry.metrics import Values

Json = dict[str, Any]
_GIB = 2**30


def summary(policies: PolicySet, reading: MemoryReading | None) -> Json:
    """The keys of `memory` that every answer has."""
    marks = policies.memory.watermarks
    return {
        "used_percent": round(reading.used_percent, 1) if reading else None,
        "available_gb": round(reading.available / _GIB, 2) if reading else None,
        "total_gb": round(reading.total / _GIB, 2) if reading else None,
        "warning_threshold": 100.0 * float(marks.warning.enter),
        "critical_threshold": 100.0 * float(marks.critical.enter),
    }


def details(parts: Parts, policies: PolicySet, readings: Readings) -> Json:
    """`memory` in /health: the numbers are of this moment, the level is what is acted by."""
    swap = read_swap()
    return {
        **summary(policies, readings.memory),
        "emergency_threshold": 100.0 * float(policies.memory.watermarks.emergency.enter),
        "swap_used_gb": round(swap.used / _GIB, 2) if swap else None,
        "swap_total_gb": round(swap.total / _GIB, 2) if swap else None,
        "level": parts.guard.level.word,
        "monitors": {name: round(100.0 * share, 1) for name, share in readings.each().items()},
    }


def status(policies: PolicySet, readings: Readings, pressure: Level) -> str:
    """As /health names it: by the raw readings, and by what the system calls pressure. Empty when
    there is room: then other things decide.
    """
    marks = policies.memory.watermarks
    used = max(readings.share, readings.memory.used_share if readings.memory else 0.0)
    if used > float(marks.critical.enter) or pressure >= Level.CRITICAL:
        return "critical"
    full = used >= float(marks.warning.enter) or pressure >= Level.WARNING
    return "warning" if full else ""


def of_worker(worker: Worker | None) -> Json | None:
    """What a model's engine holds and may hold, in bytes; None before it has said so."""
    if worker is None:
        return None
    memory, budget = worker.memory, worker.budget
    if memory.active == 0 and budget is None:
        return None
    return {
        "budget": budget.bytes or None if budget is not None else None,
        "active": memory.active,
        "cache": memory.cache,
        "peak": memory.peak,
        "prefix": memory.prefix,
        "prefix_budget": budget.prefix_bytes if budget is not None else 0,
    }


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape."""
    metrics, guard, residency = parts.metrics, parts.guard, parts.residency
    metrics.watch(
        "mlxd_memory_level",
        "The highest mark that holds: 0 normal, 1 warning, 2 critical, 3 emergency.",
        lambda: guard.level,
    )
    metrics.watch(
        "mlxd_memory_available_bytes",
        "What the machine, or the memory limit that the daemon runs under, has left.",
        lambda: _available(parts.read_memory()),
    )
    metrics.watch("mlxd_models_loaded", "Models in memory.", lambda: len(residency.workers()))
    metrics.watch_each(
        "mlxd_memory_used_ratio",
        "Share in use, by monitor.",
        ("monitor",),
        lambda: [((name,), share) for name, share in guard.read().each().items()],
    )
    metrics.watch_each(
        "mlxd_worker_memory_bytes",
        "What the engine of a loaded model holds and may hold.",
        ("model", "kind"),
        lambda: _of_workers(parts),
    )


def _available(reading: MemoryReading | None) -> float:
    return reading.available if reading is not None else math.nan


def _of_workers(parts: Parts) -> Values:
    """By the catalogue's name: there are no more of them than models. Of one that is being
    replaced, which has two workers, what both hold.
    """
    found: dict[tuple[str, ...], float] = {}
    for resident in parts.residency.residents():
        held = of_worker(parts.residency.worker_of(resident)) or {}
        for kind, number in held.items():
            if number is not None:
                labels = (resident.card.name, kind)
                found[labels] = found.get(labels, 0.0) + number
    return list(found.items())
