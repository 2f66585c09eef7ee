"""Two models of which only one fits, asked by turns: how often that fails, and what a swap takes.

python benchmarks/alternate.py [--by bytes|count|memory] [--defaults] [--json]
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.measure import quantile
from benchmarks.throughput import make_sized, say
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
NAMES = ("one", "two")
UNPROTECTED = "eviction: {protect_recent: 0s, min_residency: 0s}\n"
PROTECTED_SECONDS = 30.0
"""memory.eviction.protect_recent, as it is shipped."""
_REQUEST_SECONDS = 120.0
_PROCESS_BYTES = 260_000_000
"""More than the daemon, and a worker without its weights, take of a memory limit."""


@dataclass
class Turns:
    """What came of all requests."""

    seconds: list[float] = field(default_factory=list)
    """Of each answered request; each but the first found the other model in memory."""
    failures: list[str] = field(default_factory=list)
    together: int = 0
    """Looks at /health that found both models in memory."""


@contextmanager
def served(options: argparse.Namespace, scratch: Path) -> Iterator[Daemon]:
    """A daemon for which the two models are one too many."""
    make_sized("bank", scratch, dict.fromkeys(NAMES, options.megabytes))
    size = (scratch / "models" / NAMES[0] / "model.safetensors").stat().st_size
    models = f"dirs: [{scratch / 'models'}]\ndefaults: {{ttl: never}}\n"
    policies = {"limits": "rate_limit: []\n", "models": models}
    if options.by == "bytes":
        policies["models"] += f"max_loaded_bytes: {size * 3 // 2048}KiB\n"
    if options.by == "count":
        policies["models"] += "max_loaded: 1\n"
    if not options.defaults:
        policies["memory"] = UNPROTECTED
    folder = scratch / "daemon"
    folder.mkdir()
    with (
        _limit(options, size) as prefix,
        daemon(folder, models=scratch / "models", policies=policies, prefix=prefix) as running,
    ):
        yield running


@contextmanager
def _limit(options: argparse.Namespace, size: int) -> Iterator[tuple[str, ...]]:
    if options.by != "memory":
        yield ()
        return
    from tests.support.cgroup import memory_limit

    with memory_limit(_PROCESS_BYTES + size * 3 // 2) as group:
        yield group.prefix


def alternate(running: Daemon, requests: int, seconds: float) -> Turns:
    """One client asks the two by turns; what is not answered when the time is over has failed."""
    turns = Turns()
    ends = time.monotonic() + seconds
    with httpx.Client(base_url=running.url, timeout=_REQUEST_SECONDS) as client:
        for number in range(requests):
            if time.monotonic() > ends:
                turns.failures.append(f"{requests - number} requests were not made in time")
                break
            _ask(client, NAMES[number % 2], number, turns)
            loaded = {model["name"] for model in running.health()["cached_models"]}
            turns.together += loaded >= set(NAMES)
            if number % 10 == 9:
                say(f"{number + 1} of {requests}, {len(turns.failures)} failed")
    return turns


def contend(running: Daemon, requests: int) -> Turns:
    """Two clients at once, each asks the two by turns, the other way round."""
    both = Turns()

    def ask(first: int) -> Turns:
        turns = Turns()
        with httpx.Client(base_url=running.url, timeout=_REQUEST_SECONDS) as client:
            for number in range(requests // 2):
                _ask(client, NAMES[(first + number) % 2], number, turns)
        return turns

    with ThreadPoolExecutor(2) as pool:
        for turns in pool.map(ask, (0, 1)):
            both.seconds += turns.seconds
            both.failures += turns.failures
    say(f"two clients: {requests} requests, {len(both.failures)} failed")
    return both


def _ask(client: httpx.Client, model: str, number: int, turns: Turns) -> None:
    body = {
        "model": model, "prompt": f"turn {number}", "stream": False,
        "options": {"temperature": 0, "num_predict": 8},
    }  # fmt: skip
    began = time.perf_counter()
    try:
        answer = client.post("/api/generate", json=body)
    except httpx.HTTPError as error:
        turns.failures.append(f"request {number}: {error!r}")
        return
    taken = time.perf_counter() - began
    if answer.status_code == 200 and answer.json()["eval_count"] == 8:
        turns.seconds.append(taken)
    else:
        turns.failures.append(f"request {number}: {answer.status_code} {answer.text[:300]}")


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    with served(options, scratch) as running:
        turns = alternate(running, options.requests, options.seconds)
        alone = _spawned(running)
        contended = contend(running, options.contended) if options.contended else Turns()
        swaps = turns.seconds[1:] or [0.0]
        return {
            "by": options.by, "defaults": options.defaults, "requests": options.requests,
            "model_megabytes": options.megabytes,
            "failures": turns.failures, "spawns": alone, "together": turns.together,
            "swap_p50": median(swaps), "swap_p99": quantile(swaps, 0.99), "swap_max": max(swaps),
            "contended_requests": options.contended, "contended_failures": contended.failures,
            "contended_spawns": _spawned(running) - alone,
            "contended_max": max(contended.seconds, default=0.0),
            "daemon_lives": running.process.poll() is None,
            "all_seconds": turns.seconds,
        }  # fmt: skip


def _spawned(running: Daemon) -> int:
    return sum(running.log_text().count(f"worker for {name} started") for name in NAMES)


def problems(found: Json) -> list[str]:
    """What is not as it should be, in words."""
    wrong = [*found["failures"], *found["contended_failures"]]
    if found["spawns"] != found["requests"]:
        wrong.append(f"{found['spawns']} loads for {found['requests']} requests by turns")
    if found["together"]:
        wrong.append(f"both models were in memory {found['together']} times")
    if found["defaults"] and found["swap_p50"] < PROTECTED_SECONDS * 0.8:
        wrong.append(f"a swap took {found['swap_p50']:.1f} s: the protection does not hold")
    if not found["daemon_lives"]:
        wrong.append("the daemon ended")
    return wrong


def page(found: Json) -> str:
    wanted = f"about {PROTECTED_SECONDS:g}" if found["defaults"] else ""
    rows = [
        ["requests by turns", "", str(found["requests"]), ""],
        ["failed", "", str(len(found["failures"])), "0"],
        ["loads", "", str(found["spawns"]), str(found["requests"])],
        ["both models in memory", "times", str(found["together"]), "0"],
        ["a swap and 8 tokens, median", "s", f"{found['swap_p50']:.2f}", wanted],
        ["the same, p99", "s", f"{found['swap_p99']:.2f}", ""],
        ["the same, longest", "s", f"{found['swap_max']:.2f}", ""],
    ]
    if found["contended_requests"]:
        rows += [
            ["requests of two clients at once", "", str(found["contended_requests"]), ""],
            ["failed", "", str(len(found["contended_failures"])), "0"],
            ["loads", "", str(found["contended_spawns"]), ""],
            ["longest wait", "s", f"{found['contended_max']:.2f}", ""],
        ]
    how = {
        "bytes": "`models.max_loaded_bytes` is one and a half of them",
        "count": "`models.max_loaded: 1`",
        "memory": "a memory cgroup has room for one and a half of them",
    }[found["by"]]
    protected = "as shipped" if found["defaults"] else "0 s"
    words = (
        f"Two models of {found['model_megabytes']} MB; {how}; protection of recent use and least"
        f" residency {protected}."
    )
    return report.page(
        "Two models that do not fit together", found, [words],
        table.grid(["what", "unit", "seen", "wanted"], rows),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemon would stay behind
    found = report.begun()
    try:
        with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
            found |= measure(options, Path(scratch))
    except pytest.skip.Exception as reason:
        say(f"left out: {reason}")
        return report.LEFT_OUT
    found["problems"] = problems(found)
    name = "alternate-defaults" if options.defaults else "alternate"
    return report.publish(options, name, found, page(found))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--by", choices=["bytes", "count", "memory"], default="bytes")
    parser.add_argument("--requests", type=int, help="by turns; 100, or 4 with --defaults")
    parser.add_argument("--contended", type=int, help="of two clients at once; 40, or 0")
    parser.add_argument("--megabytes", type=int, default=40, help="the size of each model")
    parser.add_argument("--seconds", type=float, default=900.0, help="after which it has failed")
    parser.add_argument(
        "--defaults", action="store_true", help="with the shipped protection: some 30 s a swap"
    )
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.requests is None:
        options.requests = 4 if options.defaults or options.short else 100
    if options.contended is None:
        options.contended = 0 if options.defaults else 4 if options.short else 40
    if options.short:
        options.megabytes = 10
    return options


if __name__ == "__main__":
    raise SystemExit(main())
