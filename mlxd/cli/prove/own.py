"""A daemon of the proof's own, where none runs: it ends with it, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlxd.core.instance import Address, running

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_STEP_SECONDS = 0.05
_LAST_BYTES = 1000
_NOT_ITS = (
    "MLXD_PORT", "MLX_API_PORT", "MLXD_HOST", "MLXD_STATE", "MLXD_LOGS", "STATE_DIRECTORY",
    "LOGS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID",
    "LISTEN_FDNAMES", "XPC_SERVICE_NAME",
)  # fmt: skip
"""Variables that are about another daemon."""


class CannotStart(Exception):
    """The words are its own, or how it ended."""


@dataclass(frozen=True, slots=True)
class Own:
    process: subprocess.Popen[bytes]
    address: Address

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def own_daemon(policies: str | None) -> Iterator[Own]:
    """With the user's policies, on a port that is free now. Raises CannotStart."""
    with tempfile.TemporaryDirectory(prefix="mlxd-proof-", ignore_cleanup_errors=True) as folder:
        process = _started(Path(folder), policies)
        try:
            yield Own(process, _address(process, Path(folder)))
        finally:
            _end(process)


def _started(folder: Path, policies: str | None) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the proof, which ends it in its own time."""
    command = [
        *(sys.executable, "-P", "-m", "mlxd", "serve", "--host", "127.0.0.1"),
        *("--port", str(_free_port()), "--state", str(folder / "state")),
        *(("--policies", policies) if policies else ()),
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={name: text for name, text in os.environ.items() if name not in _NOT_ITS},
        )  # fmt: skip


def _address(process: subprocess.Popen[bytes], folder: Path) -> Address:
    until = time.monotonic() + _START_SECONDS
    while (found := running(folder / "state")) is None:
        if process.poll() is not None or time.monotonic() > until:
            said = (folder / "log").read_bytes()[-_LAST_BYTES:].decode("utf-8", "replace")
            raise CannotStart(said.strip() or f"it ended with status {process.returncode}")
        time.sleep(_STEP_SECONDS)
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
