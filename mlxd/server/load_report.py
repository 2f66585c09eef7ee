"""What the daemon says of loads under way, and of the processes that wait for one."""

from __future__ import annotations

from typing import Any

from mlxd.control.load_progress import LoadProgress
from mlxd.control.resident import Resident
from mlxd.server.parts import Parts

Json = dict[str, Any]


def of(parts: Parts, resident: Resident) -> Json | None:
    """`loading` of a model; None while it is not loaded."""
    progress = parts.residency.progress(resident)
    if progress is None:
        return None
    left = progress.left
    return {
        "stage": progress.stage,
        "share": round(progress.share, 3),
        "seconds_left": round(left, 1) if left is not None else None,
        "words": str(progress),
    }


def words_of(progress: LoadProgress) -> str:
    """For a comment in a stream; docs/reference/http.md promises this."""
    left = f" expected_wait={progress.left:.0f}" if progress.left is not None else ""
    return f"loading stage={progress.stage} percent={progress.percent}{left}"


def spares(parts: Parts) -> list[Json]:
    """`spares` in /health."""
    return [
        {"pid": kept.pid, "state": "ready" if kept.warm else "starting", "bytes": kept.bytes}
        for kept in parts.spares.kept()
    ]


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape."""
    parts.metrics.watch(
        "mlxd_spares_ready",
        "Engine processes without a model that wait for one.",
        lambda: sum(kept.warm for kept in parts.spares.kept()),
    )
    parts.metrics.watch(
        "mlxd_spares_bytes",
        "What engine processes without a model hold.",
        lambda: sum(kept.bytes for kept in parts.spares.kept()),
    )
    parts.metrics.watch_counts(
        "mlxd_loads_by_process",
        "Loads of models, by the process that they were given: a spare or a fresh one.",
        ("process",),
        lambda: [(("spare",), parts.spares.taken), (("fresh",), parts.spares.fresh)],
    )
