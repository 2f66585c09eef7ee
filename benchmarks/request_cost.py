"""What a request costs the daemon beside the engine: CPU time from its bytes to its answer's.

python benchmarks/request_cost.py [--requests 3000] [--profile] [--json]

The daemon's parts are made as it makes them, in this process, and a connection of its server is
given bytes; there are no sockets and no clock, so other work on the machine does little to it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.client import request_bytes
from benchmarks.throughput import say
from mlxd.control.applicant import Applicant
from mlxd.core.caller import Caller
from mlxd.core.claim import Claim
from mlxd.core.clock import SystemClock
from mlxd.core.starts import StartLedger
from mlxd.daemon.composition import Composition, compose
from mlxd.daemon.log import Log
from mlxd.policy.boot import boot
from mlxd.policy.history import history_of
from mlxd.server import repeats
from mlxd.server.connection import Connection
from tests.support.daemon import write_policies

Json = dict[str, Any]
_MODEL = "mlxd-guide"
_CLIENT = "127.0.0.1"
_LIMITS = {
    "200": "rate_limit: []\n",
    "429": "rate_limit: [{requests: 1, window: 3600s}]\n",
    "503": "rate_limit: []\nconcurrency: {max_in_flight: 1, max_waiting: 0}\n",
}
_SAID = [{"role": "user", "content": "Tell me something nice about the sea and its ships."}]
_BODIES: dict[str, Json] = {
    "/v1/chat/completions": {"messages": _SAID, "max_tokens": 1},
    "/api/chat": {"messages": _SAID, "stream": False, "options": {"num_predict": 1}},
    "/v1/messages": {"messages": _SAID, "max_tokens": 1},
}
_WARM = 20
_WHOLE = 40
"""Answers, which take an engine's time, too."""


class Wire(asyncio.Transport):
    """Keeps the last answer."""

    def __init__(self) -> None:
        super().__init__({"peername": (_CLIENT, 5000), "sockname": (_CLIENT, 5001)})
        self.written = asyncio.Event()
        self.last = b""

    def write(self, data: Any) -> None:
        self.last = bytes(data)
        self.written.set()

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@asynccontextmanager
async def composed(scratch: Path, kind: str) -> AsyncIterator[Composition]:
    """The parts of a daemon that refuses everybody, or nobody."""
    policies = {"limits": _LIMITS[kind], "models": "dirs: []\n"}
    folder = write_policies(scratch / "policies", policies)
    claim = Claim(scratch / "state")
    claim.take()
    booted = boot(folder, [], history_of(claim.state))
    made = compose(
        booted, claim, StartLedger(claim.state, SystemClock(), 5),
        overrides=[], find_folder=lambda: None, warnings=[], moved=lambda *_: None,
    )  # fmt: skip
    Log(scratch / "logs").apply(booted.policies)
    parts = made.parts
    await parts.catalog.refreshed(parts.policies.current)
    if kind != "200":
        client = "another" if kind == "503" else _CLIENT
        asks = Applicant(Caller(client), parts.policies.current, _MODEL)
        ticket = parts.admission.enter(asks)
        if kind == "429":
            parts.admission.leave(ticket)
    try:
        yield made
    finally:
        made.repeats.close()
        parts.rejections.close()
        await parts.supervisor.stop_all(5.0)


async def cost(connection: Connection, wire: Wire, data: bytes, requests: int) -> float:
    """CPU seconds of this process for each of them."""
    began = time.process_time()
    for _ in range(requests):
        wire.written.clear()
        connection.data_received(data)
        await wire.written.wait()
        while not connection.waiting:  # noqa: ASYNC110 - aiohttp turns to the next one, in a step
            await asyncio.sleep(0)
    return (time.process_time() - began) / requests


async def measure(options: argparse.Namespace, kind: str, scratch: Path) -> Json:
    async with composed(scratch, kind) as made:
        server = made.listener._server
        found: Json = {}
        for path, body in _BODIES.items():
            data = request_bytes(path, {"model": _MODEL, **body})
            if kind != "200":
                server.answers = made.repeats
                flooded = await best(server.connection(), data, kind, options.requests)
            server.answers = None
            requests = min(options.requests, _WHOLE) if kind == "200" else options.requests
            found[path] = {"ordinary": await best(server.connection(), data, kind, requests)}
            if kind != "200":
                found[path]["flood"] = flooded
        if options.profile:
            with cProfile.Profile() as profile:
                await best(server.connection(), data, kind, requests)
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
        return found


async def best(connection: Connection, data: bytes, kind: str, requests: int) -> float:
    """Of three: other programs may push this one's memory out of the caches."""
    wire = Wire()
    connection.connection_made(wire)
    await asyncio.sleep(0)
    await cost(connection, wire, data, _WARM)
    if wire.last[9:12] != kind.encode():
        raise SystemExit(f"not {kind}: {wire.last!r}")
    return min([await cost(connection, wire, data, requests) for _ in range(3)])


def page(found: Json) -> str:
    rows = []
    for kind, paths in found["kinds"].items():
        for path, costs in paths.items():
            flood = "" if kind == "200" else f"{costs['flood'] * 1e6:.0f}"
            rows.append([kind, path, f"{costs['ordinary'] * 1e6:.0f}", flood])
    words = [
        "CPU time of the daemon's process for a request, from its bytes to those of its answer: an",
        "answer of one token, and refusals as the first of a second go, and in a flood of them"
        f" (with {repeats.ORDINARY} a second on the ordinary way).",
    ]
    header = ["status", "path", "ordinary us", "flood us"]
    return report.page("What a request costs", found, words, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=3000, help="of each kind, three times")
    parser.add_argument("--kind", choices=sorted(_LIMITS), help="only this; for one process")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.requests = 100
    if options.kind:
        with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
            print(json.dumps(uvloop.run(measure(options, options.kind, Path(scratch)))))
        return 0
    found = report.begun() | {"kinds": {}, "problems": []}
    for kind in _LIMITS:
        say(f"status {kind}")
        command = [sys.executable, __file__, "--kind", kind, "--requests", str(options.requests)]
        command += ["--profile"] if options.profile else []
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found["kinds"][kind] = json.loads(done.stdout.splitlines()[-1])
    return report.publish(options, "request-cost", found, page(found))


if __name__ == "__main__":
    raise SystemExit(main())
