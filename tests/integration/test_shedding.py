"""A daemon whose aims are missed has fewer slots, and full memory refuses the low class."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.talking import eventually, generate, held
from tests.support.daemon import Daemon

pytestmark = pytest.mark.mlx

LIMITS = (
    "concurrency: {max_in_flight: 8}\n"
    "rate_limit: []\n"
    "adaptive: {enabled: true, max: 4, ttft: 1ms, token_gap: 0.01ms, interval: 200ms}\n"
)
CLIENTS = "tenants: {anonymous: {priority: low}}\npriorities: {low: {shed_at: warning}}\n"
FULL = (
    "monitors: {pressure_level: false}\n"
    "watermarks: {warning: {enter: 0.01%, actions: [shed_low_priority]}}\n"
)
"""Below what any machine has in use."""


def test_missed_aims_and_full_memory_refuse_the_low_class(start: Any) -> None:
    running: Daemon = start({"limits": LIMITS, "clients": CLIENTS})

    def fewest() -> bool:
        answered = running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=4))
        assert answered.status_code == 200
        return bool(running.health()["adaptive"]["limit"] == 1)

    eventually(fewest, "one slot is left")
    found = running.health()["adaptive"]
    assert found["missed"], "in an interval without a first token it is the gap alone"
    assert "low" in found["sheds"]
    assert (
        'mlxd_adaptive_missed_total{aim="token_gap"} 0.0' not in running.http.get("/metrics").text
    )

    with held(running):
        refused = running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=4))
    assert (refused.status_code, refused.headers["x-mlxd-code"]) == (503, "shed")
    assert refused.headers["x-mlxd-policy-key"].startswith("limits.adaptive.")

    running.edit("limits", "rate_limit: []\n")
    eventually(lambda: running.health()["adaptive"] is None, "it is off")
    running.edit("memory", FULL)
    eventually(lambda: running.health()["memory"]["level"] == "warning", "the mark is entered")
    refused = running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=4))
    assert (refused.status_code, refused.headers["x-mlxd-code"]) == (503, "shed")
    assert refused.headers["x-mlxd-policy-place"] == "policies/clients.yaml:3"
    assert "new requests of class low are refused" in refused.json()["error"]
    assert 'mlxd_shed_total{class="low"} 2.0' in running.http.get("/metrics").text
