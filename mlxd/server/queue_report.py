"""What the daemon says of its queue: to those who wait in it, in headers, in /health, and as
metrics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlxd.control.queue_view import Waiting
from mlxd.core.caller import PRIORITIES
from mlxd.core.story import Story
from mlxd.policy.policy_set import PolicySet
from mlxd.server.parts import Parts
from mlxd.telemetry.metrics import Values

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Room:
    """How many may run and wait together, and how many more of those may come."""

    places: int
    free: int


def words_of(waiting: Waiting) -> str:
    """A place in the queue, for a comment in the stream; docs/reference/http.md promises this."""
    return f"queued position={waiting.position} expected_wait={_seconds(waiting.expected_wait)}"


def place_headers(waiting: Waiting) -> dict[str, str]:
    """The same, for a status line that goes out meanwhile."""
    return {
        "X-Mlxd-Queue-Position": str(waiting.position),
        "X-Mlxd-Expected-Wait": str(_seconds(waiting.expected_wait)),
    }


def load_headers(parts: Parts, story: Story) -> dict[str, str]:
    """The class of a request, once it is known, and how busy it is now for the next one in it."""
    admission, klass = parts.admission, story.priority
    known = {"X-Mlxd-Priority": klass} if story.model else {}
    return known | {
        "X-Mlxd-Free-Slots": str(admission.free_slots),
        "X-Mlxd-Expected-Wait": str(_seconds(admission.expected_wait(klass))),
    }


def room(parts: Parts, policies: PolicySet) -> Room | None:
    """None where no limit holds."""
    concurrency, admission = policies.limits.concurrency, parts.admission
    if concurrency.mode != "enforce":
        return None
    places = admission.slots + concurrency.max_waiting
    taken = admission.active + sum(admission.waiting.values())
    return Room(places, max(0, places - taken))


def hints(parts: Parts, policies: PolicySet) -> Json:
    """What /health tells clients that choose when and where to ask."""
    waits = {klass: round(parts.admission.expected_wait(klass), 1) for klass in PRIORITIES}
    return places(parts, policies) | {"expected_wait_seconds": waits}


def places(parts: Parts, policies: PolicySet) -> Json:
    """Those that are free, and those that are taken."""
    return {
        "free_slots": parts.admission.free_slots,
        "queue": {
            "waiting": sum(parts.admission.waiting.values()),
            "max_waiting": policies.limits.concurrency.max_waiting,
        },
    }


def stats(parts: Parts, policies: PolicySet) -> Json:
    """`GET /queue/stats`, but for what requests wait for that have their slot."""
    admission = parts.admission
    totals, waiting = admission.totals, admission.waiting
    classes = {klass: totals.by_class[klass] for klass in PRIORITIES}
    return {
        "active_requests": admission.active,
        "max_concurrent": policies.limits.concurrency.max_in_flight,
        "queue_size": sum(waiting.values()),
        "max_queue_size": policies.limits.concurrency.max_waiting,
        "queued": waiting,
        "stats": {
            "total_queued": totals.queued,
            "total_processed": totals.processed,
            "total_expired": totals.expired,
            "total_rejected": totals.rejected,
            "by_priority": {**classes, **dict(zip("123", classes.values(), strict=True))},
        },
        "is_processing": admission.active > 0,
        "wait_seconds": {
            "p50": round(totals.wait(0.5), 3),
            "p99": round(totals.wait(0.99), 3),
        },
    }


def measure(parts: Parts) -> None:
    """The metrics that are asked for at each scrape, and those of each wait."""
    admission, metrics = parts.admission, parts.metrics
    admission.totals.on_started = metrics.waited
    metrics.watch("mlxd_requests_active", "Requests that have a slot.", lambda: admission.active)
    metrics.watch(
        "mlxd_slots", "Requests that may have a slot at one time.", lambda: admission.slots
    )
    metrics.watch_each(
        "mlxd_queue_waiting",
        "Requests that wait for a slot, by class.",
        ("class",),
        lambda: _each_class(parts),
    )


def _each_class(parts: Parts) -> Values:
    return [((klass,), waiting) for klass, waiting in parts.admission.waiting.items()]


def _seconds(wait: float) -> int:
    return math.ceil(max(0.0, wait))
