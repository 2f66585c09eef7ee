"""What is counted, and that Prometheus' own tool finds nothing wrong with it (R17)."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from mlxd.telemetry.metrics import Metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_refused_attempt_is_counted_and_leaves_the_time_of_the_last_success() -> None:
    metrics = Metrics()
    metrics.reloaded(result="applied", trigger="watch", seconds=0.02, at=1000.0)
    metrics.reloaded(result="refused", trigger="admin", seconds=0.01, at=2000.0)
    assert value(metrics, "mlxd_policy_last_reload_successful") == 0
    assert value(metrics, "mlxd_policy_last_reload_success_timestamp_seconds") == 1000.0
    reloads = "mlxd_policy_reloads_total"
    assert value(metrics, reloads, result="applied", trigger="watch") == 1
    assert value(metrics, reloads, result="refused", trigger="admin") == 1
    assert value(metrics, "mlxd_policy_apply_seconds_count") == 1
    metrics.reloaded(result="unchanged", trigger="admin", seconds=0.01, at=3000.0)
    assert value(metrics, "mlxd_policy_last_reload_successful") == 1


def test_a_rollback_that_is_refused_says_nothing_of_the_last_edit() -> None:
    metrics = Metrics()
    for result, successful in (("applied", 1), ("refused", 0)):
        metrics.reloaded(result=result, trigger="watch", seconds=0.01, at=1000.0)
        metrics.reloaded(result="refused", trigger="rollback", seconds=0.01, at=2000.0)
        assert value(metrics, "mlxd_policy_last_reload_successful") == successful
    assert value(metrics, "mlxd_policy_reloads_total", result="refused", trigger="rollback") == 2


def test_one_hash_and_at_most_one_error_are_told() -> None:
    metrics = Metrics()
    metrics.policies("aa", "files")
    metrics.policies("bb", "lkg")
    metrics.policy_error("limits.yaml", "3", "limits.x", 'got "two"\n')
    assert value(metrics, "mlxd_policy_hash_info", hash="aa", source="files") is None
    assert value(metrics, "mlxd_policy_hash_info", hash="bb", source="lkg") == 1
    assert b"mlxd_policy_last_error_info{" in metrics.render()
    metrics.policy_error("", "", "", "")
    assert b"mlxd_policy_last_error_info{" not in metrics.render()


def test_a_value_is_asked_for_at_each_scrape() -> None:
    metrics = Metrics()
    now = [1.0]
    metrics.watch("mlxd_policy_generation", "The generation.", lambda: now[0])
    now[0] = 7.0
    assert value(metrics, "mlxd_policy_generation") == 7.0


def test_series_that_are_not_told_any_more_are_gone() -> None:
    metrics = Metrics()
    held = {"tiny-a": 3.0, "tiny-b": 4.0}
    name = "mlxd_worker_memory_bytes"
    metrics.watch_each(name, "Held.", ("model",), lambda: [((m,), v) for m, v in held.items()])
    assert value(metrics, name, model="tiny-a") == 3.0
    del held["tiny-a"]
    assert value(metrics, name, model="tiny-a") is None
    assert value(metrics, name, model="tiny-b") == 4.0


def test_what_full_memory_led_to_is_counted() -> None:
    metrics = Metrics()
    metrics.memory_action("evict_lru")
    metrics.evicted("watermark", 2)
    metrics.evicted("load")
    assert value(metrics, "mlxd_memory_actions_total", action="evict_lru") == 1
    assert value(metrics, "mlxd_model_evictions_total", reason="watermark") == 2
    assert value(metrics, "mlxd_model_evictions_total", reason="load") == 1


def test_two_of_them_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.would_deny("hosts")
    assert value(other, "mlxd_policy_would_deny_total", rule="hosts") is None


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend() -> None:
    metrics = Metrics()
    metrics.reloaded(result="applied", trigger="watch", seconds=0.02, at=1000.0)
    metrics.policies("aa", "files")
    metrics.policy_error("limits.yaml", "3", "limits.x", 'expected "a"\\b, got\ntwo lines')
    metrics.would_deny("rate_limit:per-client")
    metrics.memory_action("evict_lru")
    metrics.evicted("load")
    metrics.watch_each("mlxd_x_ratio", "Of x.", ("y",), lambda: [(("z",), 0.5)])
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.render(), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
