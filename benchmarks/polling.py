"""Asks /health and /readyz again and again, from a process of its own: what they said, and when."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

Json = dict[str, Any]
Serving = dict[str, int | None]
"""Models that are served, as told, by which process; None where that is not told."""
EVERY_SECONDS = 0.05
_PATIENCE = 10.0


@dataclass(frozen=True)
class Sample:
    """One answer; a status of 0 means none. Times are monotonic."""

    path: str
    sent: float
    took: float
    status: int
    text: str = ""
    """Of an answer other than 200."""
    active: int = 0
    serving: tuple[tuple[str, int | None], ...] = ()


class Polling:
    """For the length of the block; `samples` are there afterwards."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.samples: list[Sample] = []
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_poll, args=(port, theirs), daemon=True)

    def __enter__(self) -> Polling:
        self._process.start()
        self._ours.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.send("over")
        self.samples = self._ours.recv()
        self._process.join()


def _poll(port: int, ours: Connection) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    samples: list[Sample] = []
    ours.send("ready")
    while not ours.poll(EVERY_SECONDS):
        samples += [_ask(connection, path) for path in ("/health", "/readyz")]
    connection.close()
    ours.send(samples)


def _ask(connection: http.client.HTTPConnection, path: str) -> Sample:
    sent = time.monotonic()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return Sample(path, sent, time.monotonic() - sent, 0, repr(error))
    took = time.monotonic() - sent
    if answer.status != 200:
        return Sample(path, sent, took, answer.status, body.decode("utf-8", "replace")[:200])
    if path != "/health":
        return Sample(path, sent, took, answer.status)
    told = json.loads(body)
    serving = tuple(sorted(serving_of(told).items()))
    return Sample(path, sent, took, 200, "", told["active_requests"], serving)


def serving_of(health: Json) -> Serving:
    """By `workers` where it is told, else by the models that are cached and do not load."""
    if "workers" in health:
        return {
            str(worker.get("model") or worker.get("name")): worker.get("pid")
            for worker in health["workers"]
            if worker.get("state") == "serving"
        }
    return {m["name"]: None for m in health["cached_models"] if not m["is_loading"]}
