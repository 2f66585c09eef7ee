"""An installed `mlxd`, run as its user would: away from the checkout, with nothing set."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.daemon import free_port

_START_SECONDS = 60.0


def environment(home: Path, **more: str) -> dict[str, str]:
    """A user's without any setting of mlxd's."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), **more}


@contextmanager
def served(command: Path, folder: Path) -> Iterator[httpx.Client]:
    """What this `mlxd` serves; it has stopped well at the end."""
    port = free_port()
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(command), "serve", "--port", str(port), "--state", str(folder / "state")],
            env=environment(folder), cwd=folder, stdout=sink, stderr=sink,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=100) as http:
            _wait_until_live(http, process, log)
            yield http
        process.send_signal(signal.SIGTERM)
        assert process.wait(_START_SECONDS) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def check_a_token(http: httpx.Client) -> None:
    """The guide answers, from its weights."""
    asked = {"model": "default", "prompt": "Hello", "stream": False, "options": {"num_predict": 4}}
    answer = http.post("/api/generate", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["eval_count"] > 0
    assert answer.json()["response"]


def _wait_until_live(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            http.get("/livez")
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(log.read_text())
