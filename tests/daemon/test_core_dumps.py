"""A crash leaves no memory behind, of the daemon and of its workers, unless policy lets it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of processes: /proc")

SPARES = "worker: {spares: 1}\n"
ALLOWED = "daemon: {core_dumps: true}\n"
MOST = 1 << 20


def leaves(pid: int) -> tuple[int, int]:
    """The soft limit of its core, and which memory would be in it."""
    soft, _ = psutil.Process(pid).rlimit(psutil.RLIMIT_CORE)
    return soft, int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16)


@pytest.mark.mlx
def test_it_is_live_and_workers_have_what_holds_as_they_start(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    if limits[1] != resource.RLIM_INFINITY:
        pytest.skip("the system allows no cores here")
    resource.setrlimit(resource.RLIMIT_CORE, (MOST, limits[1]))
    try:
        with daemon(tmp_path, policies={"supervision": SPARES}, prefix=["env"]) as running:
            assert leaves(running.pid) == (0, 0)
            assert leaves(spare(running)) == (0, 0)
            running.edit("supervision", SPARES + ALLOWED)
            running.reload()
            soft, kept = leaves(running.pid)
            assert (soft, kept != 0) == (MOST, True)
            running.edit("supervision", SPARES)
            running.reload()
            assert leaves(running.pid) == (0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)


def spare(running: Daemon) -> int:
    """The pid of a worker that waits for a model."""
    from tests.integration.talking import eventually

    return eventually(running.spares, "there is a spare")[0]


def test_where_the_system_allows_none_policy_does_not_either() -> None:
    program = (
        "import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "from mlxd.daemon.core_dumps import CoreDumps\n"
        "from mlxd.policy.load import Override, load\n"
        "cores = CoreDumps()\n"
        "cores.apply(load(None, [Override('supervision.daemon.core_dumps', 'true', 'a test')]))\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(0, 0)\n"
