"""Clients that ask again and again, each time on a new connection."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Failure:
    """A request that got no whole answer with status 200."""

    began: float
    ended: float
    why: str


@dataclass
class Callers:
    """Those at work: how many answers they got, and what went wrong."""

    answers: int = 0
    failures: list[Failure] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def call(self, port: int, body: bytes, pause: float) -> None:
        """In a loop, until `stop`."""
        while not self.stop.wait(pause):
            began = time.monotonic()
            why = _ask(port, body)
            if why:
                self.failures.append(Failure(began, time.monotonic(), why))
            else:
                self.answers += 1


@contextmanager
def calling(
    ports: Sequence[int], body: Mapping[str, Any], *, each: int, pause: float = 0.05
) -> Iterator[Callers]:
    """`each` callers for every port, until the end of the block; then all are answered."""
    callers = Callers()
    asked = json.dumps(body).encode()
    with ThreadPoolExecutor(max(1, each * len(ports))) as pool:
        loops = [pool.submit(callers.call, p, asked, pause) for p in ports for _ in range(each)]
        try:
            yield callers
        finally:
            callers.stop.set()
        for loop in loops:
            loop.result()


def _ask(port: int, body: bytes) -> str:
    """Why there is no answer; empty: there is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/api/generate", body)
        response = connection.getresponse()
        content = response.read()
        whole = response.status == 200 and json.loads(content.splitlines()[-1])["done"]
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()
    return "" if whole else f"{response.status} {content[:200]!r}"
