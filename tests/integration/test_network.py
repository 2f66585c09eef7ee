"""Without any network, and beside another server on 11434."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mlx

IN_NAMESPACE = 'ip link set lo up && exec "$0" "$@"'


def _why_not() -> str:
    """Why no network namespace can be made here; empty if one can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for tool in ("unshare", "ip", "sh"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run(
        ["unshare", "-n", "sh", "-c", "ip link set lo up"],
        check=False,
        capture_output=True,
        text=True,
    )
    return f"no network namespace: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.mark.slow
def test_start_serve_and_restart_work_with_loopback_only_and_leave_11434_alone(
    models: Path, tmp_path: Path
) -> None:
    if reason := _why_not():
        pytest.skip(reason)
    inner = [sys.executable, "-m", "tests.integration.lonely", str(models), str(tmp_path)]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", IN_NAMESPACE, *inner],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["interfaces"] == ["lo"]
    assert found["seen"] == 0
    for run in found["runs"]:
        assert all(run["texts"])
        assert run["listens"] == [11435]
        assert run["exit"] == 0
    assert found["runs"][0]["texts"] == found["runs"][1]["texts"]
