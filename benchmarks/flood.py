"""A flood of requests, from a process of its own: so many a second over a few connections.

python benchmarks/flood.py PORT RATE SECONDS CONNECTIONS [--address A] [--reconnect] < REQUEST

REQUEST is the bytes of one. A connection has one request under way at a time; whenever the process
wakes up it sends all that are due by then, so a rate is kept in bursts of a few milliseconds, at
little cost. Prints JSON: what was answered, by status, and how long that took.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections import Counter, deque

_RECEIVE = 1 << 16
_TICK = 0.002
"""Seconds between two looks at what is due."""


class Flood:
    """Keeps a rate as well as those who answer let it."""

    def __init__(self, options: argparse.Namespace, request: bytes) -> None:
        self._options = options
        self._request = request
        self._epoll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._idle: deque[int] = deque()
        self._asked: dict[int, float] = {}
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        for _ in range(options.connections):
            self._connect()

    def run(self) -> float:
        """Returns how long it took."""
        began = time.perf_counter()
        sent, until = 0, began + self._options.seconds
        while (now := time.perf_counter()) < until:
            due = int((now - began) * self._options.rate) - sent
            sent += self._send(due)
            for file, _ in self._epoll.poll(_TICK):
                self._read(file)
        return time.perf_counter() - began

    def _send(self, due: int) -> int:
        """As many as are due and connections are free for. Nobody makes up for what was missed."""
        count = min(due, len(self._idle))
        for _ in range(count):
            file = self._idle.popleft()
            self._asked[file] = time.perf_counter()
            self._socks[file].send(self._request)
        return due if due > 0 else 0

    def _read(self, file: int) -> None:
        sock = self._socks[file]
        data = sock.recv(_RECEIVE)
        if data:
            self.seconds.append(time.perf_counter() - self._asked.pop(file))
        self.statuses[data[9:12].decode() or "closed"] += 1
        if self._options.reconnect or not data:
            self._epoll.unregister(file)
            del self._socks[file]
            sock.close()
            self._connect()
        else:
            self._idle.append(file)

    def _connect(self) -> None:
        source = (self._options.address, 0) if self._options.address else None
        sock = socket.create_connection(("127.0.0.1", self._options.port), source_address=source)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socks[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._idle.append(sock.fileno())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("port", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("connections", type=int)
    parser.add_argument("--address", help="to come from")
    parser.add_argument("--reconnect", action="store_true", help="a connection for each request")
    options = parser.parse_args()
    flood = Flood(options, sys.stdin.buffer.read())
    cpu, began = time.process_time(), time.perf_counter()
    took = flood.run()
    seconds = sorted(flood.seconds) or [0.0]
    found = {
        "statuses": flood.statuses,
        "rate": sum(flood.statuses.values()) / took,
        "cpu": time.process_time() - cpu,
        "began": began,
        "ended": began + took,
        "p50": seconds[len(seconds) // 2],
        "p99": seconds[int(len(seconds) * 0.99)],
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
