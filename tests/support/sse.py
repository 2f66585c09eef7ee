"""A follower of /api/events in a test: a stream of records, read as they come."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

Json = dict[str, Any]
_PATIENCE = 60.0


class Stream:
    """Reads in a thread of its own."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.ended = threading.Event()
        self.seen: list[Json] = []
        """What was taken from it."""
        self._records: queue.SimpleQueue[Json] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, type: str, **data: Any) -> Json:
        """The next record of this type with this data; others are passed."""
        while True:
            record = self._records.get(timeout=_PATIENCE)
            self.seen.append(record)
            found = record["data"]
            if record["type"] == type and all(found.get(k) == v for k, v in data.items()):
                return record

    def next(self) -> Json:
        record = self._records.get(timeout=_PATIENCE)
        self.seen.append(record)
        return record

    @property
    def waiting(self) -> int:
        """Records that were not taken yet."""
        return self._records.qsize()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for line in self.response.iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    record = json.loads(fields["data"])
                    assert (str(record["id"]), record["type"]) == (fields["id"], fields["event"])
                    self._records.put(record)
                    fields = {}
        except (httpx.HTTPError, httpx.StreamError):
            pass
        self.ended.set()


@contextmanager
def stream(
    http: httpx.Client, path: str = "/api/events", headers: Mapping[str, str] | None = None
) -> Iterator[Stream]:
    """Follow; hung up at the end of the block."""
    asked = {"Accept": "text/event-stream", **(headers or {})}
    with http.stream("GET", path, headers=asked, timeout=_PATIENCE) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield Stream(response)


def silent_follower(port: int) -> socket.socket:
    """One that asks for the stream and never reads of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    sock.connect(("127.0.0.1", port))
    sock.sendall(b"GET /api/events?since=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return sock
