"""What /health says of workers."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.control.breaker import State
from mlxd.control.worker import Worker
from mlxd.core.clock import ManualClock
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.server import worker_report


async def test_what_a_worker_lacks_is_a_warning_until_it_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    process = SimpleNamespace(pid=1)
    worker: Any = Worker(ModelSpec("/m", 512), "m", ManualClock(), process)  # type: ignore[arg-type]
    slot = SimpleNamespace(name="m", state=State.SERVING, serving=worker)
    parts: Any = SimpleNamespace(supervisor=SimpleNamespace(slots=lambda: [slot]))
    words = "prefixes cannot be kept on disk: Read-only file system"
    worker.data_received(ipc.encode(ipc.Lacks(words)))
    assert worker_report.warnings(parts) == [f"m: {words}"]
    assert worker_report.states(parts) == {}, "it serves all the same"
    worker.data_received(ipc.encode(ipc.Lacks("")))
    assert worker_report.warnings(parts) == []
    assert caplog.messages == [f"m: {words}", "m: what it could not do it can again"]
