"""A daemon with a log file of its own: it moves with an edit, and is followed when it is moved."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import daemon

pytestmark = pytest.mark.mlx


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(file: Path, words: str) -> bool:
    return file.exists() and words in file.read_text()


def test_the_log_is_a_file_where_that_is_asked_for(tmp_path: Path) -> None:
    first, second = tmp_path / "logs" / "mlxd.log", tmp_path / "other.log"
    with daemon(tmp_path, environment={"MLXD_LOGS": str(first.parent)}) as running:
        until(lambda: said(first, "serves on http://"))
        first.rename(first.with_suffix(".moved"))
        running.process.send_signal(signal.SIGHUP)
        until(lambda: said(first, "reload"))
        running.edit("server", f"log: {{file: {second}, rotate: {{size: 500B, keep: 1}}}}\n")
        running.reload()
        for level in ("debug", "info") * 3:
            running.edit("limits", f"concurrency: {{max_in_flight: {len(level)}}}\n")
            running.reload()
        assert running.health()["warnings"] == []
        assert running.stop() == 0
    assert said(second, "stopped")
    assert {path.name for path in tmp_path.glob("other.log*")} == {"other.log", "other.log.1"}
    assert all(path.stat().st_size <= 2000 for path in tmp_path.glob("other.log*"))
    lines = running.log_text().splitlines()
    assert [line for line in lines if "the log goes to" not in line] == []
