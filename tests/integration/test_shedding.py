"""A daemon whose aims are missed has fewer slots, and full memory refuses the low class."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.talking import Json, eventually, generate, held
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

    def fewest() -> Json:
        answered = running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=4))
        assert answered.status_code == 200
        found: Json = running.health()["adaptive"]
        return found if found["limit"] == 1 and found["missed"] else {}

    assert "low" in eventually(fewest, "one slot is left, and too slow")["sheds"]
    assert (
        'mlxd_adaptive_missed_total{aim="token_gap"} 0.0' not in running.http.get("/metrics").text
    )

    def shed() -> bool:
        return "low" in running.health()["adaptive"]["sheds"]

    with held(running):
        eventually(shed, "it is judged, if nothing ran for an interval before it")
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
