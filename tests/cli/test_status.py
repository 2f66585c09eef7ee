"""`mlxd status`, line by line."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxd.cli import client
from mlxd.cli.status import _queue
from mlxd.cli.watch import watch
from mlxd.core.claim import Claim
from mlxd.core.instance import Address
from tests.support.command import mlxd


@pytest.mark.parametrize(
    ("waiting", "most", "line"),
    [
        (0, 0, "off: who finds no slot is refused"),
        (0, 50, "0 of 50 wait; one more would for: high 0 s, medium 0 s, low 12.5 s"),
        (3, 0, "3 of 0 wait; one more would for: high 0 s, medium 0 s, low 12.5 s"),
    ],
)
def test_the_queue_is_one_line(waiting: int, most: int, line: str) -> None:
    health: Any = {
        "queue": {"waiting": waiting, "max_waiting": most},
        "expected_wait_seconds": {"high": 0.0, "medium": 0.0, "low": 12.5},
    }
    assert _queue(health) == line


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state folder of a daemon that takes connections, and no more."""
    monkeypatch.setattr(client, "HEALTH_SECONDS", 0.2)
    monkeypatch.setattr(client.get_json, "__defaults__", (0.2,))
    claim = Claim(tmp_path / "state")
    claim.take()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        claim.announce(Address(os.getpid(), "127.0.0.1", listener.getsockname()[1], "0"))
        yield claim.state
    claim.release()


@pytest.mark.parametrize("command", ["status", "logs"])
def test_a_daemon_that_hangs_is_not_called_down(hanging: Path, command: str) -> None:
    done = mlxd(command, "--state", hanging)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"mlxd (pid {os.getpid()}) runs and does not answer: no answer")


def test_a_program_can_tell_a_daemon_that_hangs_from_none(hanging: Path) -> None:
    done = mlxd("status", "--json", "--state", hanging)
    assert done.returncode == 1
    assert json.loads(done.stdout)["status"] == "silent"


def test_one_that_hangs_is_watched(hanging: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(None, str(hanging), rounds=1) == 0
    assert "runs and does not answer" in capsys.readouterr().out
