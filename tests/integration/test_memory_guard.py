"""A daemon and full memory: what it reads under a real limit, what its marks do, how it says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.talking import ENDLESS, cached, eventually, generate, held, idle
from tests.support.cgroup import memory_limit
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

LIMIT = 3 * 2**30
AT_ONCE = "eviction: {keep: 0, protect_recent: 0s, min_residency: 0s}\n"
QUIET = f"monitors: {{pressure_level: false}}\n{AT_ONCE}"
CRITICAL = f"{QUIET}watermarks: {{warning: {{enter: 0.01%}}, critical: {{enter: 0.02%}}}}\n"
"""Below what any machine has in use."""
EMERGENCY = CRITICAL.replace("}}\n", "}, emergency: {enter: 0.03%}}\n")


def metric(running: Daemon, name: str) -> float:
    text = running.http.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_under_a_real_limit_the_limit_is_the_memory_there_is(tmp_path: Path, zoo: Path) -> None:
    with memory_limit(LIMIT) as group, daemon(tmp_path, models=zoo, prefix=group.prefix) as running:
        memory = running.health()["memory"]
        assert memory["total_gb"] == round(group.limit / 2**30, 2)
        assert 0 < memory["available_gb"] < memory["total_gb"]
        assert 0 < memory["monitors"]["memory_limit"] < 100
        assert memory["used_percent"] >= memory["monitors"]["memory_limit"]
        assert 0 < metric(running, "mlxd_memory_available_bytes") < group.limit
        assert 0 < metric(running, 'mlxd_memory_used_ratio{monitor="memory_limit"}') < 1


@pytest.fixture(scope="module")
def running(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """For the two tests of the short form; the second has it in an emergency."""
    with daemon(tmp_path_factory.mktemp("memory"), models=zoo) as started:
        yield started


def test_the_memory_of_a_loaded_models_engine_is_shown(running: Daemon) -> None:
    running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=2))
    idle(running)
    assert metric(running, "mlxd_models_loaded") == 1
    assert running.health()["memory"]["level"] == "normal"
    shown = cached(running)["tiny-a"]["memory_bytes"]
    assert shown is None or shown.keys() == {
        "budget", "active", "cache", "peak", "prefix", "prefix_budget",
    }  # fmt: skip


@pytest.mark.slow
def test_over_critical_idle_models_leave_and_none_is_loaded_until_it_is_left(start: Any) -> None:
    running: Daemon = start({"memory": QUIET})
    running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=2))
    idle(running)
    running.edit("memory", CRITICAL)
    eventually(lambda: not running.health()["cached_models"], "the idle model is gone")
    refused = running.http.post("/api/generate", json=generate("tiny-b", "hi", tokens=2))
    assert refused.status_code == 503
    assert refused.headers["x-mlxd-code"] == "insufficient_memory"
    assert refused.headers["x-mlxd-policy-place"] == "policies/memory.yaml:4"
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert "no model is loaded until it is below" in refused.json()["error"]
    health = running.health()
    assert (health["status"], health["memory"]["level"]) == ("critical", "critical")
    assert any("loads are blocked" in warning for warning in health["warnings"])
    assert running.http.get("/readyz").status_code == 200
    running.edit("memory", QUIET)
    eventually(lambda: running.health()["memory"]["level"] == "normal", "the marks are left")
    answered = running.http.post("/api/generate", json=generate("tiny-b", "hi", tokens=2))
    assert answered.status_code == 200


@pytest.mark.slow
def test_in_an_emergency_the_newest_answer_ends_and_traffic_is_to_stay_away(start: Any) -> None:
    running: Daemon = start({"memory": QUIET})
    with held(running) as stream:
        running.edit("memory", EMERGENCY)
        eventually(lambda: running.http.get("/readyz").status_code == 503, "it is not ready")
        assert "this answer was ended to free memory" in stream.rest()[-1]["error"]
    refused = running.http.post("/api/generate", json=generate(ENDLESS, "hi", tokens=2))
    assert refused.status_code == 503
    assert "no generation is admitted until it is below" in refused.json()["error"]
    assert running.http.get("/livez").status_code == 200
    assert metric(running, "mlxd_memory_level") == 3
    assert metric(running, 'mlxd_memory_actions_total{action="stop_admission"}') == 1
    kinds = [event["type"] for event in running.admin.get("/admin/events")["events"]]
    assert "pressure" in kinds
    assert "memory_action" in kinds
    running.edit("memory", QUIET)
    eventually(lambda: running.http.get("/readyz").status_code == 200, "it is ready again")
    answered = running.http.post("/api/generate", json=generate("tiny-a", "hi", tokens=2))
    assert answered.status_code == 200


@pytest.mark.slow
def test_where_no_generation_is_admitted_traffic_is_to_stay_away_whatever_the_mark(
    start: Any,
) -> None:
    running: Daemon = start({"memory": QUIET})
    stopping = "critical: {enter: 0.02%, actions: [stop_admission]}"
    running.edit("memory", CRITICAL.replace("critical: {enter: 0.02%}", stopping))
    eventually(lambda: running.health()["memory"]["level"] == "critical", "the mark is entered")
    refused = running.http.post("/api/generate", json=generate(ENDLESS, "hi", tokens=2))
    assert "no generation is admitted until it is below" in refused.json()["error"]
    assert running.http.get("/readyz").status_code == 503
    running.edit("memory", QUIET)
    eventually(lambda: running.http.get("/readyz").status_code == 200, "it is ready again")


def test_health_stays_readable_and_changes_nothing_in_an_emergency(running: Daemon) -> None:
    running.edit("memory", EMERGENCY)
    running.reload()
    eventually(lambda: running.health()["memory"]["level"] == "emergency", "it is an emergency")
    before = metric(running, 'mlxd_memory_actions_total{action="warn"}')
    statuses = {running.http.get("/health").status_code for _ in range(20)}
    assert statuses == {httpx.codes.OK}
    assert metric(running, 'mlxd_memory_actions_total{action="warn"}') == before
