"""What streams that wait in the queue cost: the daemon's memory for each, and /health beside them.

python benchmarks/waiting.py [--streams 1000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.measure import quantile
from benchmarks.model import make
from benchmarks.polling import Polling, Sample
from benchmarks.throughput import say
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
MODEL = "tiny"
WANTED_BYTES = 40_000
"""Of the daemon's memory, for each."""
WANTED_HEALTH = 0.050
BODY = 1024
"""Bytes of a request's body."""
_FIRST_BYTE = 4.0
_TOLD = 10.0
"""Seconds for which they are told of their places before memory is read again."""
_WARM = 200
_PATIENCE = 300.0
_LEAVE = 10
"""One of so many leaves before it is served."""
_COMMENT = re.compile(rb"^: queued position=\d+ expected_wait=\d+$", re.MULTILINE)


class Client(asyncio.Protocol):
    """Asks once, on a connection of its own, and keeps what it is told."""

    def __init__(self, request: bytes) -> None:
        self.heard = bytearray()
        self.over = False
        self._request = request
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def served(self) -> bool:
        return self.heard.startswith(b"HTTP/1.1 200 ") and b"data: [DONE]\n" in self.heard

    @property
    def told(self) -> bool:
        """It got its status line and a word about its place."""
        return _COMMENT.search(self.heard) is not None


def request_of(tokens: int, number: int) -> bytes:
    """`number` makes it another one than the others; its body is BODY bytes long."""
    text = f"tell of number {number} "
    missing = BODY - len(_body_of(tokens, text))
    text += ("the server answers a request " * BODY)[:missing]
    body = _body_of(tokens, text)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nAccept: text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _body_of(tokens: int, text: str) -> bytes:
    said = [{"role": "user", "content": text}]
    body = {
        "model": MODEL, "stream": True, "temperature": 0, "max_tokens": tokens, "messages": said,
    }  # fmt: skip
    return json.dumps(body).encode()


class Crowd:
    """Those who ask, and what they look at while they wait."""

    def __init__(self, running: Daemon) -> None:
        self._running = running
        self._process = psutil.Process(running.pid)

    async def join(self, count: int, tokens: int = 1, first: int = 0) -> list[Client]:
        loop = asyncio.get_running_loop()
        clients = [Client(request_of(tokens, first + number)) for number in range(count)]
        for client in clients:
            await loop.create_connection(lambda c=client: c, "127.0.0.1", self._running.port)  # type: ignore[misc]
        return clients

    async def until(self, fact: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not fact():
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {_PATIENCE:g} s: {what}")
            await asyncio.sleep(0.05)

    async def until_waiting(self, clients: Sequence[Client]) -> None:
        """Until so many wait as these are, and nobody else."""
        async with httpx.AsyncClient(base_url=self._running.url, timeout=30) as http:
            deadline = time.monotonic() + _PATIENCE
            while (await http.get("/health")).json()["queue"]["waiting"] != len(clients):
                for early in (client for client in clients if client.over):
                    raise SystemExit(f"one does not wait: {early.heard.decode()}")
                if time.monotonic() > deadline:
                    raise SystemExit(f"not within {_PATIENCE:g} s: {len(clients)} wait")
                await asyncio.sleep(0.1)

    def cpu_seconds(self) -> float:
        used = self._process.cpu_times()
        return float(used.user + used.system)

    def memory(self) -> int:
        return int(self._process.memory_info().rss)


async def wait_together(running: Daemon, count: int) -> Json:
    """One has the only slot, the others wait; some leave, then all are served."""
    crowd = Crowd(running)
    [holder] = await crowd.join(1, tokens=60_000)
    await crowd.until(lambda: b"data: " in holder.heard, "the slot is taken")
    warm = await crowd.join(_WARM, first=10**6)
    await crowd.until_waiting(warm)
    for client in warm:
        client.leave()
    await crowd.until_waiting([])
    before, cpu = crowd.memory(), crowd.cpu_seconds()
    began = time.monotonic()
    clients = await crowd.join(count)
    await crowd.until_waiting(clients)
    all_wait = time.monotonic()
    waiting, taken = crowd.memory(), crowd.cpu_seconds() - cpu
    say(f"{count} wait after {all_wait - began:.1f} s")
    await crowd.until(lambda: all(client.told for client in clients), "all are told")
    await asyncio.sleep(_TOLD)
    told = crowd.memory()
    leavers = clients[::_LEAVE]
    for client in leavers:
        client.leave()
    await crowd.until_waiting([client for client in clients if client not in leavers])
    say(f"{len(leavers)} have left; the others are served")
    quiet, cpu = time.monotonic(), crowd.cpu_seconds()
    running.edit("limits", limits(count, slots=16))
    holder.leave()
    await crowd.until(lambda: all(client.over for client in clients), "all are served")
    return {
        "streams": count, "left": len(leavers),
        "served": sum(client.served for client in clients),
        "bytes_waiting": (waiting - before) / count, "bytes_told": (told - before) / count,
        "cpu_ms_each": taken / count * 1e3,
        "cpu_ms_served": (crowd.cpu_seconds() - cpu) / (count - len(leavers)) * 1e3,
        "times": (began, all_wait, quiet),
        "serving_seconds": time.monotonic() - quiet,
    }  # fmt: skip


def limits(count: int, slots: int) -> str:
    """limits.yaml: so many may wait."""
    return (
        f"concurrency: {{max_in_flight: {slots}, max_waiting: {count + _WARM},"
        " max_waiting_tokens: 1000000000}\nrate_limit: []\ntokens: {max_output: 65536}\n"
    )


@contextmanager
def served(scratch: Path, count: int) -> Iterator[Daemon]:
    folder = scratch / "served"
    folder.mkdir()
    policies = {
        "limits": limits(count, slots=1),
        "clients": f"priorities: {{medium: {{queue: {count + _WARM}}}}}\n",
        "server": f"http: {{max_connections: {2 * count + 1000}}}\n",
        "models": f"dirs: [{scratch / 'models'}]\ndefaults: {{ttl: never}}\n",
        "timeouts": (
            f"queue: 3600s\nfirst_byte: {_FIRST_BYTE:g}s\ngeneration: 3600s\nclient_write: 600s\n"
        ),
    }
    with daemon(folder, models=scratch / "models", policies=policies) as running:
        yield running


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    make(scratch / "models" / MODEL, "tiny-long")
    _allow_files(2 * options.streams + 1000)
    with served(scratch, options.streams) as running, Polling(running.port) as polling:
        found = asyncio.run(wait_together(running, options.streams))
    began, all_wait, quiet = found.pop("times")
    asked = [sample for sample in polling.samples if sample.path == "/health"]
    phases = {"coming": (began, all_wait), "waiting": (all_wait, quiet), "served": (quiet, inf)}
    return found | {
        "judged": not options.short,
        "health": {
            name: _latencies([one for one in asked if first <= one.sent < last])
            for name, (first, last) in phases.items()
        },
        "health_failed": sum(sample.status != 200 for sample in asked),
    }


def _allow_files(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _latencies(samples: list[Sample]) -> Json:
    took = [sample.took for sample in samples] or [0.0]
    return {
        "asked": len(samples), "p50": quantile(took, 0.5), "p99": quantile(took, 0.99),
        "max": max(took),
    }  # fmt: skip


def problems(found: Json) -> list[str]:
    wrong: list[str] = []
    expected = found["streams"] - found["left"]
    if found["served"] != expected:
        wrong.append(f"{found['served']} of {expected} were served")
    if found["health_failed"]:
        wrong.append(f"/health failed {found['health_failed']} times")
    if not found["judged"]:
        return wrong
    most = max(found["bytes_waiting"], found["bytes_told"])
    if most > WANTED_BYTES:
        wrong.append(f"one that waits costs {most:.0f} bytes")
    p99 = found["health"]["waiting"]["p99"]
    if p99 > WANTED_HEALTH:
        wrong.append(f"/health takes {p99 * 1e3:.0f} ms (p99) while they wait")
    return wrong


def page(found: Json) -> str:
    ms = report.milliseconds
    memory = [
        ["all wait", f"{found['bytes_waiting'] / 1e3:.1f}", f"at most {WANTED_BYTES / 1e3:g}"],
        ["all are told of their places", f"{found['bytes_told'] / 1e3:.1f}",
         f"at most {WANTED_BYTES / 1e3:g}"],
    ]  # fmt: skip
    wanted = {"waiting": f"p99 at most {ms(WANTED_HEALTH)}"}
    health = [
        [f"they are {name}", str(at["asked"]), ms(at["p50"]), ms(at["p99"]), ms(at["max"]),
         wanted.get(name, "")]
        for name, at in found["health"].items()
    ]  # fmt: skip
    words = [
        f"{found['streams']} streams of OpenAI's chat wait for the only slot, each with a body of"
        f" {BODY} bytes on a connection of its own; {found['left']} leave, and the others are"
        f" served within {found['serving_seconds']:.1f} s once there are 16 slots.",
        f"The daemon takes {found['cpu_ms_each']:.1f} ms of CPU for each until it waits,"
        f" and {found['cpu_ms_served']:.1f} ms from then on, with all that the others are told.",
        "Memory is what the daemon's resident set grew by, over their number, after as many as"
        f" {_WARM} had come and gone.",
    ]
    return report.page(
        "Streams that wait", found, words,
        table.grid(["memory when", "KB each", "wanted"], memory),
        table.grid(["/health while", "asked", "p50 ms", "p99 ms", "max ms", "wanted"], health),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "waiting", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--streams", type=int, default=1000, help="that wait at one time")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.streams = min(options.streams, 30)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
