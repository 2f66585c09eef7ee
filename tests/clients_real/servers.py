"""The daemons as a client's tests see them. Standard library only: every environment imports it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 60.0


@dataclass(frozen=True)
class Server:
    """One daemon."""

    url: str

    @property
    def v1(self) -> str:
        """The base URL of OpenAI's API."""
        return f"{self.url}/v1"

    def get(self, path: str) -> Any:
        return json.loads(self._ask("GET", path).read())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return json.loads(self._ask("POST", path, json.dumps(body)).read())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Somebody else's stream runs, and is not read."""
        options = {"temperature": 0, "num_predict": 8000}
        body = {"model": "endless", "prompt": "Foxes", "options": options}
        while (response := self._ask("POST", "/api/generate", json.dumps(body))).status != 200:
            response.read()  # the slot of the test before is not free yet
        try:
            response.readline()
            yield
        finally:
            response.close()

    def kill_worker(self, model: str) -> None:
        """As a crash would end it."""
        for worker in self.get("/health")["workers"]:
            if worker["model"] == model and worker["pid"]:
                os.kill(worker["pid"], signal.SIGKILL)

    def wait_until_idle(self) -> None:
        """No generation runs: what a client has left is let go."""
        until(lambda: self.get("/health")["active_requests"] == 0, "it is never idle")

    def _ask(self, method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)
        connection.request(method, path, body, {"Connection": "close"})
        return connection.getresponse()


def servers() -> dict[str, Server]:
    """By name, as run.py has started them."""
    return {name: Server(url) for name, url in json.loads(os.environ["MLXD_CLIENTS"]).items()}


def until(true: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.01)


def nobody() -> str:
    """Where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
