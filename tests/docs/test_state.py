"""docs/reference/state.md names every file that mlxd keeps, and the bounds that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxd.control import benched, estimates, kernels, own_names, pulled, quotas, usage
from mlxd.core import aside
from mlxd.daemon.traffic import FOLDER
from mlxd.policy import history
from mlxd.policy.schema.server import Rotation
from mlxd.server.watchdog import STACKS
from mlxd.telemetry import crashes, events, flight, traffic, traffic_log

TEXT = (Path(__file__).parents[2] / "docs" / "reference" / "state.md").read_text(encoding="utf-8")
ROWS = {
    name: cells[2]
    for line in TEXT.splitlines()
    if line.startswith("| `")
    for cells in [line.strip("| ").split(" | ")]
    for name in re.findall("`([^`]+)`", cells[0])
}


@pytest.mark.parametrize(
    ("file", "bound"),
    [
        (crashes.FILE, f"the newest {crashes.KEPT} "),
        (estimates.FILE, f"{estimates.MOST_MODELS} models, {estimates.MOST_OBSERVATIONS} "),
        (benched.FILE, f"{benched.MOST_MODELS} models;"),
        (flight.FILE, "one record"),
        (usage.FILE, f"{usage.MOST_TENANTS} tenants, {quotas.MOST_ADDRESSES} addresses"),
        ("lkg/NNNNNNNN.json", f"{history.KEPT} generations"),
        ("models.d/*.json", f"{own_names.MOST_NAMES} names"),
        ("models/.partial/", f"last {pulled.PARTIAL_SECONDS / 86_400:.0f} days"),
        ("models/.partial/", f"at most {pulled.MOST_PARTIAL};"),
        ("kernels/VERSION/", f"{kernels.MOST_BYTES // 2**20} MiB"),
        (STACKS, "the last one"),
        (f"{FOLDER}/{traffic.FILE}", f"{Rotation().keep} finished files"),
        (f"{FOLDER}/{traffic_log.SALT}", "64 characters"),
        ("NAME.set-aside-*", f"{aside.KEPT} of each name"),
    ],
)
def test_each_bound_is_the_one_in_the_code(file: str, bound: str) -> None:
    assert bound in ROWS[file]


def test_events_are_not_on_the_disk() -> None:
    assert f"Events are in memory, the last {events.KEPT};" in TEXT
