"""Daemons that cost no imports: what `mlxd serve` imports, a second of the processor, a process of
its own imports once, and each daemon is forked from there.

On Linux, and where nothing asks for an interpreter of the daemon's own. The others are started as a
user would.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from mlxd.cli import main

_NEEDED = ("mlxd.cli.listening", "mlxd.daemon", "mlxd.policy.boot", "mlxd.settings")
_ROOT = Path(__file__).parents[2]
_LONGEST = 1 << 18
"""Bytes of a message."""
_READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ")
"""What the names of variables begin with that an interpreter looks at once."""


class Forked:
    """A process that is another's child, used as `subprocess.Popen` is."""

    def __init__(self, warm: Warm, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._warm = warm
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._warm.status(self.pid)
            if self.returncode is not None:
                os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            select.select([self._ended], [], [], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that daemons are forked from; it ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._asking = threading.Lock()
        self._told = _read_at_start(os.environ)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
            )

    def close(self) -> None:
        """It ends when nobody is there to ask."""
        self._socket.close()
        self._process.wait()

    def suffices(self, environment: Mapping[str, str]) -> bool:
        """Whether an interpreter of its own would be the same in this environment."""
        return _read_at_start(environment) == self._told

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], sink: IO[bytes]
    ) -> Forked:
        """`mlxd` with these arguments; `sink` takes what it prints."""
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        return Forked(self, self._ask(request, sink.fileno()))

    def status(self, pid: int) -> int | None:
        """Of a process that has ended, as `subprocess.Popen` tells it; it is gone then."""
        found: int | None = self._ask({"pid": pid})
        return found

    def _ask(self, request: dict[str, Any], *files: int) -> Any:
        with self._asking:
            body = json.dumps(request).encode()
            if files:
                socket.send_fds(self._socket, [body], files)
            else:
                self._socket.send(body)
            answer = self._socket.recv(_LONGEST)
        assert answer, "the process that daemons are forked from has ended"
        return json.loads(answer)


@cache
def warm() -> Warm | None:
    """This test process's, started when it is first needed. Benchmarks have none: what they measure
    is started as a user would.
    """
    if sys.platform != "linux" or "PYTEST_VERSION" not in os.environ:
        return None
    found = Warm()
    atexit.register(found.close)
    return found


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a child for each request that wants one; returns there, with what it is to be."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, _LONGEST, 1)
        if not message:
            sys.exit()
        request: dict[str, Any] = json.loads(message)
        if "pid" in request:
            answer = _ended(request["pid"])
        elif (answer := os.fork()) == 0:
            os.dup2(files[0], 1)
            os.dup2(files[0], 2)
            os.close(files[0])
            return request
        else:
            os.close(files[0])
        requests.send(json.dumps(answer).encode())


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _main() -> NoReturn:
    for module in _NEEDED:
        importlib.import_module(module)

    requests = socket.socket(fileno=int(sys.argv[1]))
    request = _serve(requests)
    requests.close()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["mlxd", *request["arguments"]]
    sys.exit(main())


if __name__ == "__main__":
    _main()
