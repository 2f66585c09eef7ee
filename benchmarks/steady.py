"""What stays behind of ten thousand requests, in the daemon and in the engine's process.

python benchmarks/steady.py [--requests 10000] [--json]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import linear_regression
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.model import words
from benchmarks.servers import Daemon
from benchmarks.throughput import make_model, say

Json = dict[str, Any]
SHAPE = "tiny-long"
CLIENTS = 8
LOOKS = 50
WARM_UP = 0.2
"""The part of all requests that does not count: pools and caches fill."""
WANTED = 1.0
"""MB of a process for 1,000 requests."""
WHO = ("daemon", "worker")


class Client:
    """One keep-alive connection, with a conversation that grows and begins anew."""

    def __init__(self, port: int, model: str, seed: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120.0)
        self._model = model
        self._draw = random.Random(seed)
        self._messages: list[Json] = []

    def ask(self, times: int) -> int:
        """How many were answered; any other answer raises."""
        for _ in range(times):
            path, body = self._next()
            self._connection.request("POST", path, json.dumps(body | {"model": self._model}))
            response = self._connection.getresponse()
            said = response.read()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {said[:300]!r}")
        return times

    def _next(self) -> tuple[str, Json]:
        draw, stream = self._draw, self._draw.random() < 0.5
        kind = draw.randrange(4)
        some = words(draw, draw.randrange(5, 60))
        if kind == 0:
            return "/v1/completions", {
                "prompt": some, "max_tokens": 8, "stream": stream, "seed": draw.randrange(100),
            }  # fmt: skip
        if kind == 1:
            return "/api/generate", {
                "prompt": some, "stream": stream, "options": {"num_predict": 8, "temperature": 0},
            }  # fmt: skip
        if kind == 2:
            return "/v1/messages", {
                "messages": [{"role": "user", "content": some}], "max_tokens": 8, "stream": stream,
            }  # fmt: skip
        if len(self._messages) > 10:
            self._messages = []
        self._messages += [{"role": "user", "content": some}]
        turn = [*self._messages]
        self._messages += [{"role": "assistant", "content": words(draw, 8)}]
        return "/v1/chat/completions", {"messages": turn, "max_tokens": 8, "stream": stream}


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    folder = make_model(SHAPE, scratch)
    looks = min(LOOKS, options.requests // CLIENTS)
    each = options.requests // looks // CLIENTS
    seen: list[Json] = []
    daemon = Daemon(folder, scratch)
    try:
        daemon.until_ready()
        clients = [Client(daemon.port, daemon.model, seed) for seed in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in range(looks):
                asked = sum(pool.map(lambda client: client.ask(each), clients))
                seen.append(look(daemon.watched.process.pid, asked, seen))
                say(", ".join(f"{name} {value:.5g}" for name, value in seen[-1].items()))
    finally:
        daemon.watched.stop()
    return {"judged": not options.short, "looks": seen} | {
        f"{who}_slope": slope(seen, who) for who in WHO
    }


def look(pid: int, asked: int, before: list[Json]) -> Json:
    """MB of each process, once nothing runs any more."""
    time.sleep(0.3)
    processes = list(engines(pid))
    if len(processes) != 1:
        raise RuntimeError(f"{len(processes)} engine processes, where one was there before")
    done = asked + (before[-1]["requests"] if before else 0)
    return {
        "requests": done,
        "daemon": psutil.Process(pid).memory_info().rss / 1e6,
        "worker": processes[0].memory_info().rss / 1e6,
    }


def engines(pid: int) -> Iterator[psutil.Process]:
    for process in psutil.Process(pid).children(recursive=True):
        if any("mlxd.worker" in word for word in process.cmdline()):
            yield process


def slope(seen: list[Json], who: str) -> float:
    """MB for 1,000 requests, behind the first ones."""
    warm = seen[int(len(seen) * WARM_UP) :]
    return linear_regression(
        [one["requests"] / 1000 for one in warm], [one[who] for one in warm]
    ).slope


def problems(found: Json) -> list[str]:
    if not found["judged"]:
        return []
    return [
        f"the {who} grows by {found[f'{who}_slope']:.2f} MB for 1,000 requests, and less than"
        f" {WANTED:g} was wanted"
        for who in WHO
        if found[f"{who}_slope"] >= WANTED
    ]


def page(found: Json) -> str:
    seen = found["looks"]
    shown = seen[:: max(1, len(seen) // 10)]
    header = ["requests", "daemon, MB", "worker, MB"]
    rows = [[str(one["requests"]), *(f"{one[who]:.1f}" for who in WHO)] for one in shown]
    slopes = [
        f"For 1,000 requests, behind the first {WARM_UP:.0%}: "
        + ", ".join(f"{who} {found[f'{who}_slope']:.3f} MB" for who in WHO)
        + f"; below {WANTED:g} was wanted."
    ]
    return report.page("Memory over many requests", found, slopes, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "steady", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=10_000)
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.requests = 160
    return options


if __name__ == "__main__":
    raise SystemExit(main())
