"""A disk that is full, and a log that nobody can write or read: serving goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import NO_LIMITS, Start
from tests.integration.talking import ENDLESS, eventually, say, unload
from tests.support.daemon import Daemon, daemon

pytestmark = pytest.mark.mlx

ROOM = "256k"


def lost_lines(running: Daemon) -> float:
    text = running.http.get("/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("mlxd_log_lines_lost")]
    return float(line.split()[1])


def check_it_serves(running: Daemon) -> None:
    """Loads a model, answers, and takes an edit, though it cannot write it down."""
    assert say(running, ENDLESS, "full", tokens=5)
    running.edit("limits", "concurrency: {max_in_flight: 32}\nrate_limit: []\n")
    assert running.reload()["result"] == "applied"
    health = running.health()
    assert health["max_concurrent"] == 32
    assert any("could not be kept" in warning for warning in health["warnings"])
    assert "Traceback" not in running.log_text()


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
@pytest.mark.slow
def test_a_daemon_that_can_write_no_file_any_more_serves(start: Start) -> None:
    """As on a disk that is full everywhere: for the log, the state, and what workers write."""
    import resource

    running = start()
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    check_it_serves(running)
    assert lost_lines(running) > 0
    assert running.stop() == 0


def _no_disk() -> str:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux mounts a small disk"
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", "/mnt"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return f"nothing can be mounted: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A state folder with no room at all."""
    if reason := _no_disk():
        pytest.skip(reason)
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "none", str(state)]
    subprocess.run(mount, check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            (state / "ballast").write_bytes(bytes(2**20))
        yield state
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def test_a_daemon_starts_and_serves_with_a_full_state_folder(small_disk: Path, zoo: Path) -> None:
    folder = small_disk.parent
    with daemon(folder, models=zoo, policies={"limits": NO_LIMITS}) as running:
        say(running, ENDLESS, "warm", tokens=1)
        (pid,) = (worker["pid"] for worker in running.health()["workers"])
        private = Path(psutil.Process(pid).environ()["TMPDIR"])
        assert not private.is_relative_to(small_disk)
        assert private.stat().st_mode & 0o777 == 0o700
        unload(running, ENDLESS)
        eventually(lambda: not private.exists(), "what a worker kept is removed")
        assert say(running, ENDLESS, "again", tokens=2)
        assert running.log_text().count("the state folder cannot be written") == 1
        (small_disk / "ballast").unlink()
        assert running.address().port == running.port, "it says where it is once it can"
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("stderr", "loses"),
    [
        pytest.param("2>&-", True, id="closed", marks=pytest.mark.slow),
        pytest.param("2>/dev/full", True, id="full"),
        pytest.param("2<>fifo", False, id="read by nobody"),
    ],
)
def test_a_log_that_cannot_be_written_neither_ends_nor_holds_up_the_daemon(
    start: Start, tmp_path: Path, stderr: str, loses: bool
) -> None:
    os.mkfifo(tmp_path / "fifo")
    script = f'cd {tmp_path} && exec "$@" {stderr}'
    running = start(prefix=("sh", "-c", script, "sh"))
    for _ in range(1 if loses else 600):
        assert running.http.get("/livez").status_code == 200
    assert lost_lines(running) > 0
    assert running.stop() == 0
