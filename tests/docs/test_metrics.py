"""docs/reference/metrics.md lists every metric that is served, with its type and labels."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import Daemon

TEXT = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text(encoding="utf-8")
ROWS = {
    name: (kind, labels)
    for name, kind, labels in re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*?) ?\| ", TEXT, re.MULTILINE
    )
}


def test_every_metric_is_listed_with_its_type(shared_daemon: Daemon) -> None:
    served = dict(
        re.findall(r"^# TYPE (\w+) (\w+)$", shared_daemon.http.get("/metrics").text, re.MULTILINE)
    )
    assert {name: kind for name, (kind, _) in ROWS.items()} == served


def test_a_metrics_labels_are_those_that_are_listed(shared_daemon: Daemon) -> None:
    for name, labels in re.findall(
        r"^(mlxd_\w+)\{(.*)\} ", shared_daemon.http.get("/metrics").text, re.MULTILINE
    ):
        if not name.endswith("_bucket"):
            row = ROWS.get(name) or ROWS[re.sub(r"_(sum|count)$", "", name)]  # of a histogram
            listed = set(re.findall(r"`(\w+)`", row[1]))
            assert set(re.findall(r'(\w+)="', labels)) == listed


def test_metrics_are_served_as_text_that_prometheus_reads(shared_daemon: Daemon) -> None:
    answer = shared_daemon.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_own_tool_finds_nothing_to_mend(shared_daemon: Daemon) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], check=False, capture_output=True,
        input=shared_daemon.http.get("/metrics").content,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
