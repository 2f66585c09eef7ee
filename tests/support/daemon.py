"""A real daemon in a test: `mlxd serve` with policies of the test's own, on a free port."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from mlxd.cli.admin import AdminClient
from mlxd.core import instance
from tests.support.warm import Forked, warm

_START_SECONDS = 60.0
_STOP_SECONDS = 40.0


@dataclass(slots=True)
class Daemon:
    """One running `mlxd serve`, and how to talk to it."""

    process: subprocess.Popen[bytes] | Forked
    port: int
    state: Path
    log: Path
    http: httpx.Client = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> list[psutil.Process]:
        """Its engine processes, spares included."""
        return psutil.Process(self.pid).children()

    def spares(self) -> list[int]:
        """Of those, the pids of the ones that are ready for a model."""
        spares = self.admin.get("/admin/health")["spares"]
        return [spare["pid"] for spare in spares if spare["state"] == "ready"]

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get("/health").json()
        return body

    def log_text(self) -> str:
        return self.log.read_text()

    @property
    def policies(self) -> Path:
        """The policy folder."""
        return self.state.parent / "policies"

    def edit(self, kind: str, text: str) -> None:
        """Put another policy file in place of a kind's, whole: `text` is below its `schema:`. See
        `daemon` for spares.
        """
        text = without_spares(text) if kind == "supervision" else text
        write_whole(self.policies / f"{kind}.yaml", f"schema: mlxd/v1\n{text}")

    def address(self) -> instance.Address:
        """Where it says it can be reached; it is live a moment before it says so."""
        deadline = time.monotonic() + _START_SECONDS
        while (found := instance.running(self.state)) is None:
            assert time.monotonic() < deadline, "it runs, and does not say where"
            time.sleep(0.01)
        return found

    def follow(self) -> None:
        """Talk to it where it is now."""
        self.port = self.address().port
        self.http.base_url = httpx.URL(self.url)

    @property
    def admin(self) -> AdminClient:
        return AdminClient(self.address().admin)

    def reload(self) -> dict[str, Any]:
        """Have it read its policies now; returns the outcome."""
        return self.admin.post("/admin/policy/reload")

    def generation(self) -> int:
        """Of the policies in force, as its clients are told."""
        return int(self.http.get("/livez").headers["x-mlxd-policy"])

    def wait_for_generation(self, above: int, within: float) -> int:
        """Until policies newer than `above` are in force; returns their generation."""
        deadline = time.monotonic() + within
        while (found := self.generation()) <= above:
            late = f"not within {within:g} s: a generation above {above}"
            assert time.monotonic() < deadline, late
            time.sleep(0.005)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_STOP_SECONDS)


def free_port() -> int:
    """One of this test process's own: between this look and the daemon's, no other test process
    takes it, nor does Linux give it to whoever connects (from 32768 on).
    """
    first = 12_000 + 2_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
    while True:
        port = random.SystemRandom().randrange(first, first + 2_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def write_whole(file: Path, text: str) -> None:
    """Nobody sees a part of it."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text)
    temporary.replace(file)


def without_spares(supervision: str) -> str:
    """The same policies without spares, unless they say how many there are to be; each line stays
    where it is.
    """
    if "spares" in supervision:
        return supervision
    worker = re.search(r'^"?worker"?:', supervision, flags=re.MULTILINE)
    if worker is None:
        return f"{supervision}worker: {{spares: 0}}\n"
    head, rest = supervision[: worker.end()], supervision[worker.end() :]
    if (inside := re.match(r" *\{", rest)) is not None:
        return f"{head}{inside[0]}spares: 0, {rest[inside.end() :]}"
    indent = re.match(r"\n( +)", rest)
    assert indent is not None, f"spares are not said in a way that is known here: {supervision!r}"
    return f"{head}{indent[0]}spares: 0\n{indent[1]}{rest[indent.end() :]}"


def write_policies(folder: Path, files: Mapping[str, str]) -> Path:
    """`files` maps a kind (`limits`) to the YAML below its `schema:` line."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in files.items():
        (folder / f"{kind}.yaml").write_text(f"schema: mlxd/v1\n{text}")
    return folder


@contextmanager
def daemon(
    folder: Path,
    *,
    models: Path | None = None,
    policies: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    port_flag: bool = True,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Iterator[Daemon]:
    """Start a daemon below `folder` and stop it at the end; its log is shown if it does not start.

    No folder of the user's is scanned: only `models`. Without `port_flag` the port is what
    `policies` say, so that they can change it; `port` must be the same. `prefix` is a program that
    starts the daemon in circumstances of its own, and gets `pass_fds`. It keeps no spares unless
    its policies say so: a second of the processor for each daemon.
    """
    port = port or free_port()
    models = models or folder / "no-models"
    files = {"models": f"dirs: [{models}]\n", **(policies or {})}
    files["supervision"] = without_spares(files.get("supervision", ""))
    log = folder / "daemon.log"
    arguments = [
        "serve",
        *(("--port", str(port)) if port_flag else ()),
        *("--policies", str(write_policies(folder / "policies", files))),
        *("--state", str(folder / "state")),
    ]
    circumstances = {**_clean_environment(), **(environment or {})}
    with log.open("wb") as sink:
        process: subprocess.Popen[bytes] | Forked
        if not (prefix or pass_fds) and (forks := warm()) and forks.suffices(circumstances):
            process = forks.start(arguments, circumstances, sink)
        else:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "mlxd", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=pass_fds,
                env=circumstances,
            )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        running = Daemon(process, port, folder / "state", log, http)
        try:
            _wait_until_live(running)
            yield running
        finally:
            try:
                running.stop()
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_live(running: Daemon) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            break
        try:
            if running.http.get("/livez").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.02)
    raise AssertionError(f"the daemon did not start:\n{running.log_text()}")


def _clean_environment() -> dict[str, str]:
    """This process's, without what would change a daemon."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLXD_", "MLX_API_", "OLLAMA_", "OPENAI_"))
    }
