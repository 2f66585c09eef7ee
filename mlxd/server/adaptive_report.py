"""What the daemon says of adaptive concurrency and of classes that are refused."""

from __future__ import annotations

from typing import Any

from mlxd.control.adaptive import AIMS
from mlxd.control.shedding import shed_rule
from mlxd.core.caller import PRIORITIES
from mlxd.server.parts import Parts

Json = dict[str, Any]


def details(parts: Parts) -> Json | None:
    """For /health; None while it is off."""
    adaptive = parts.admission.scheduler.adaptive
    return adaptive.as_json() if adaptive.enabled else None


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape."""
    scheduler, metrics = parts.admission.scheduler, parts.metrics
    refused = parts.admission.refused
    metrics.watch(
        "mlxd_adaptive_limit",
        "Slots that latencies allow; limits.concurrency.max_in_flight while that is off.",
        lambda: scheduler.slots,
    )
    metrics.watch_counts(
        "mlxd_adaptive_missed",
        "Intervals whose latencies were beyond an aim.",
        ("aim",),
        lambda: [((aim,), scheduler.adaptive.missed_total[aim]) for aim in AIMS],
    )
    metrics.watch_counts(
        "mlxd_shed",
        "Requests that were refused for their class, by class.",
        ("class",),
        lambda: [((klass,), refused[shed_rule(klass)]) for klass in PRIORITIES],
    )
