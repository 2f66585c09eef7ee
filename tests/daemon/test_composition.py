"""How parts are joined, where that alone decides something."""

from __future__ import annotations

import os
from unittest.mock import MagicMock

import pytest

from mlxd.core.clock import ManualClock
from mlxd.daemon import composition
from mlxd.policy.load import load
from mlxd.telemetry.metrics import Metrics


def test_systemd_hears_of_a_daemon_that_drains_though_nobody_looks_after_workers_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    ground = MagicMock(machine=ManualClock())
    ground.store.current = load()
    models, parts, systemd = MagicMock(), MagicMock(), MagicMock()
    parts.state.draining, models.vitals.overdue = False, True
    heartbeat, _ = composition._watched(ground, models, parts, MagicMock(), systemd)
    heartbeat.beat(0.0)
    systemd.alive.assert_not_called()
    parts.state.draining = True
    heartbeat.beat(0.0)
    systemd.alive.assert_called_once_with()


def test_what_clients_got_is_among_what_is_written_beside_the_event_loop() -> None:
    made = MagicMock()
    made.parts.metrics = metrics = Metrics()
    composition.join(made, MagicMock())
    assert b"mlxd_requests_total" in metrics.render_served()
