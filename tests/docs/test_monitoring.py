"""The files of etc/ for Prometheus and Grafana: their own tools take them, and they ask for metrics
that there are.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_metrics import ROWS

ETC = Path(__file__).parents[2] / "etc"
RULES = (ETC / "prometheus.rules.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((ETC / "grafana.json").read_text(encoding="utf-8"))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


def asked_for(text: str) -> set[str]:
    return {
        name if name in ROWS else re.sub(r"_(bucket|sum|count)$", "", name)
        for name in re.findall(r"\b(mlxd_\w+)", text)
    }


@needs_promtool
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "prometheus.rules.yml"),
        ("test", "rules", "prometheus.rules.test.yml"),
    ],
    ids=" ".join,
)
def test_prometheus_own_tool_takes_them(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=ETC, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_alert_is_raised_by_a_test() -> None:
    tests = (ETC / "prometheus.rules.test.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)", RULES)
    assert alerts
    assert all(f'alertname="{name}"' in tests or f"{name}, eval" in tests for name in alerts)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    assert asked_for(RULES) <= set(ROWS)


def test_commands_that_alerts_name_are_there() -> None:
    command_line = [sys.executable, "-m", "mlxd", "--help"]
    known = subprocess.run(command_line, check=True, capture_output=True, text=True).stdout
    for command in set(re.findall(r"`mlxd (\w+)", RULES)):
        assert re.search(rf"^    {command} ", known, re.MULTILINE), command


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    queries = [t["expr"] for panel in DASHBOARD["panels"] for t in panel.get("targets", ())]
    assert len(queries) > 20
    assert set.union(*map(asked_for, queries)) <= set(ROWS)


@needs_promtool
def test_the_dashboards_queries_are_queries(tmp_path: Path) -> None:
    """Grafana fills in its variables first."""
    queries = [t["expr"] for panel in DASHBOARD["panels"] for t in panel.get("targets", ())]
    filled = [
        query.replace("$__rate_interval", "1m").replace("$instance", ".*") for query in queries
    ]
    rules = {"groups": [{"name": "q", "rules": [
        {"record": f"q{number}", "expr": query} for number, query in enumerate(filled)
    ]}]}  # fmt: skip
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps(rules))
    command = ["promtool", "check", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
