"""What 1,000 slow clients do to others: slowhttptest's four attacks on a daemon, and how long a
client that asks as it should waits before and during each.

python benchmarks/slow.py [--connections 1000] [--seconds 80] [--modes H B R X] [--short]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.servers import cpu_seconds
from benchmarks.throughput import say
from tests.support.balancers import absent
from tests.support.daemon import Daemon, daemon
from tests.support.model_maker import Shape, make_model
from tests.support.peak import KNOWN, forget, most

Json = dict[str, Any]
WANTED_RATIO = 2.0
WANTED_BYTES = 64 * 2**10
"""Of memory for each connection that policy allows."""
_MODEL = "tiny"
_ESTABLISHED = "01"
"""As /proc/net/tcp has it."""
_SILENT = """
import asyncio

async def serve():
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""
_PAUSE_SECONDS = 0.02
_PATIENCE_SECONDS = 30.0
_POLICIES = {"limits": "concurrency: {max_in_flight: 8}\nrate_limit: []\n"}
_BODY = json.dumps({"model": _MODEL, "prompt": "hello", "options": {"num_predict": 8}})
_END = "Host: localhost\r\nConnection: close\r\n"
ASKED = {
    "livez": f"GET /livez HTTP/1.1\r\n{_END}\r\n",
    "tags": f"GET /api/tags HTTP/1.1\r\n{_END}\r\n",
    "stream": f"POST /api/generate HTTP/1.1\r\n{_END}Content-Length: {len(_BODY)}\r\n\r\n{_BODY}",
}
"""Each on a connection of its own."""
_BEGUN = ("H", "B")
"""Where every connection has a request that never becomes whole: none is there for its next one."""
MODES: dict[str, tuple[str, str, list[str]]] = {
    "H": ("slow headers", "/api/tags", ["-H", "-i", "5"]),
    "B": ("slow bodies", "/api/show", ["-B", "-i", "5", "-s", "8192", "-f", "application/json"]),
    "R": ("ranges", "/api/tags", ["-R", "-t", "GET", "-a", "5", "-b", "2000"]),
    "X": ("slow reading", "/api/tags", ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32",
                                        "-k", "3"]),
}  # fmt: skip


@dataclass
class Times:
    """Of a client that asks in turns, one after the other."""

    seconds: dict[str, list[float]]
    failures: list[str]

    def p(self, name: str, share: float) -> float:
        ordered = sorted(self.seconds[name])
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.inf


def ask_for(port: int, seconds: float) -> Times:
    times = Times({name: [] for name in ASKED}, [])
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, asked in ASKED.items():
            began = time.perf_counter()
            said = _ask(port, asked)
            times.seconds[name].append(time.perf_counter() - began)
            if not said.startswith("HTTP/1.1 200"):
                times.failures.append(f"{name}: {said[:60]!r}")
        time.sleep(_PAUSE_SECONDS)
    return times


def _ask(port: int, asked: str) -> str:
    said = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as sock:
            sock.sendall(asked.encode())
            while piece := sock.recv(65536):
                said += piece
    except OSError as error:
        return str(error)
    return said.decode()


@contextmanager
def somebody_else() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", _SILENT], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def attacked(
    options: argparse.Namespace, port: int, mode: str, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """slowhttptest writes its figures of each second to MODE.csv."""
    _, path, its_own = MODES[mode]
    command = [
        "slowhttptest", *its_own, "-c", str(options.connections), "-r", str(options.rate),
        "-l", str(options.seconds), "-u", f"http://127.0.0.1:{port}{path}", "-p", "5",
        "-g", "-o", str(folder / mode), "-v", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # it writes its figures and ends
        process.wait(_PATIENCE_SECONDS)


def strike(options: argparse.Namespace, running: Daemon, mode: str, folder: Path) -> Json:
    quiet = ask_for(running.port, options.quiet)
    with somebody_else() as port, attacked(options, port, mode, folder):
        beside = ask_for(running.port, options.quiet)
    before = forget(running.pid) if KNOWN else 0
    cpu = cpu_seconds(running.pid)
    with attacked(options, running.port, mode, folder):
        during = ask_for(running.port, options.seconds)
        left = _left(running.port, mode)
    cpu = cpu_seconds(running.pid) - cpu
    held = most(running.pid) - before if KNOWN else 0
    _until_alone(running)
    seconds = [*csv.DictReader((folder / f"{mode}.csv").open())]
    connected = [int(row["Connected"]) for row in seconds]
    p99 = {name: during.p(name, 0.99) for name in ASKED}
    quiet_p99 = {name: quiet.p(name, 0.99) for name in ASKED}
    beside_p99 = {name: beside.p(name, 0.99) for name in ASKED}
    found = {
        "mode": mode, "name": MODES[mode][0], "connections": options.connections,
        "most_at_once": max(connected), "closed": int(seconds[-1]["Closed"]),
        "left_at_end": left, "bytes": held, "cores": cpu / options.seconds,
        "asked": len(during.seconds["livez"]), "failures": during.failures,
        "quiet_p99": quiet_p99, "beside_p99": beside_p99, "p99": p99,
        "ratio_p99": {name: p99[name] / quiet_p99[name] for name in ASKED},
    }  # fmt: skip
    say(f"{found}")
    return found


def _left(port: int, mode: str) -> int:
    """Connections that a timer should have ended, as the daemon's own kernel has them: those whose
    request is not whole, or whose client has not taken what is there for it. An answered one may
    wait for its client's next request.
    """
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        ours = local.endswith(f":{port:04X}") and state == _ESTABLISHED
        found += ours and (mode in _BEGUN or int(queues.partition(":")[0], 16) > 0)
    return found


def _until_alone(running: Daemon) -> None:
    """Until what slowhttptest left is gone."""
    time.sleep(1.0)
    assert running.http.get("/livez").status_code == 200


def problems(options: argparse.Namespace, rows: list[Json]) -> list[str]:
    wrong = []
    for row in rows:
        name = row["name"]
        wrong += [
            f"{name}: {len(row['failures'])} failed, such as {why}" for why in row["failures"][:1]
        ]
        if row["bytes"] > WANTED_BYTES * options.connections:
            wrong.append(f"{name}: {row['bytes'] / 2**20:.0f} MiB more")
        if options.short:
            continue
        wrong += [
            f"{name}: the p99 of {asked} is {ratio:.1f} times that without"
            for asked, ratio in row["ratio_p99"].items()
            if ratio > WANTED_RATIO
        ]
        if row["left_at_end"]:
            wrong.append(f"{name}: {row['left_at_end']} connections outlast every timer")
    return wrong


def page(options: argparse.Namespace, found: Json) -> str:
    rows = [
        [
            row["name"], str(row["most_at_once"]), str(row["closed"]), str(row["left_at_end"]),
            f"{row['bytes'] / 2**20:.1f}", f"{row['cores']:.2f}", str(len(row["failures"])),
            *(
                f"{row[when][name] * 1e3:.1f}"
                for name in ASKED
                for when in ("quiet_p99", "beside_p99", "p99")
            ),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    columns = ["attack", "at once", "closed", "left", "MiB more", "daemon cores", "failed"]
    columns += [f"{name} {when}" for name in ASKED for when in ("p99 ms", "beside", "during")]
    words = [
        f"{options.connections} connections of slowhttptest, {options.rate} a second, for"
        f" {options.seconds} s each, on a daemon with the policies it is shipped with",
        "(512 connections). At once and closed are slowhttptest's figures; left are those that a"
        " timer should have",
        "ended, by the system's own table. The others are those of a client that asks in turns"
        " meanwhile,",
        "a connection for each request; the stream is of 8 tokens. Beside is the same attack, with"
        " another server for its",
        "target: slowhttptest takes a core for itself.",
    ]
    return report.page("Slow clients", found, words, table.grid(columns, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemon would stay behind
    on_linux = Path("/proc/net/tcp").exists()
    if reason := absent("slowhttptest") if on_linux else "it reads the connections of Linux":
        print(reason, file=sys.stderr)
        return report.LEFT_OUT
    found = report.begun()
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
        folder = Path(scratch)
        models = folder / "models"
        make_model(models / _MODEL, Shape())
        with daemon(folder, models=models, policies=_POLICIES) as running:
            ask_for(running.port, 2.0)
            found["rows"] = [strike(options, running, mode, folder) for mode in options.modes]
    found["problems"] = problems(options, found["rows"])
    return report.publish(options, "slow", found, page(options, found))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--rate", type=int, default=200, help="new connections a second")
    parser.add_argument("--seconds", type=int, default=80, help="of each attack")
    parser.add_argument("--quiet", type=float, default=20.0, help="seconds before each")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.connections, options.seconds, options.quiet = 600, 6, 2.0
    return options


if __name__ == "__main__":
    raise SystemExit(main())
