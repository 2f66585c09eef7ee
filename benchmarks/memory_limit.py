"""Mixed requests for models that need more memory than there is: who is refused, who is killed.

The daemon and its workers run in a memory cgroup of their own, smaller than the models' weights.

python benchmarks/memory_limit.py [--requests 1000] [--json]
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import mixed, report, table
from benchmarks.measure import quantile
from benchmarks.throughput import make_sized, say
from tests.support.cgroup import LimitedGroup, memory_limit
from tests.support.daemon import Daemon, daemon
from tests.support.model_maker import make_hollow

Json = dict[str, Any]
SIZES = (60, 90, 120, 150, 180)
"""Megabytes of weights; together more than the limit."""
LIMIT = 560
SHORT_SIZES = (40, 60)
SHORT_LIMIT = 300
TOO_LARGE = "whale"
_WATCHED_EVERY = 0.1
_LOADED = re.compile(r"worker for \S+ started")
_KILLED = re.compile(r"(?:ended with status -9\b|SIGKILL|signal 9\b)")


class Watch:
    """Looks at a group again and again: the most that it held, and what the kernel killed."""

    def __init__(self, group: LimitedGroup) -> None:
        self._group = group
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most_bytes = 0
        """Without cached files."""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_WATCHED_EVERY):
            self.most_bytes = max(self.most_bytes, held_bytes(self._group))


def held_bytes(group: LimitedGroup) -> int:
    """What the kernel cannot drop by itself."""
    lines = (group.folder / "memory.stat").read_text().splitlines()
    stat = {name: int(value) for name, value in (line.split() for line in lines)}
    return stat["total_rss"] if "total_rss" in stat else stat["anon"]


def peak_bytes(group: LimitedGroup) -> int:
    """The most that ever counted, cached files included; 0 where no such number is kept."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        file = group.folder / name
        if file.exists():
            return int(file.read_text())
    return 0


def make_models(scratch: Path, sizes: Sequence[int], too_large: int) -> list[str]:
    names = [f"bank-{size}" for size in sizes]
    make_sized("bank", scratch, dict(zip(names, sizes, strict=True)))
    folder = scratch / "models" / TOO_LARGE
    shutil.copytree(scratch / "models" / names[0], folder)
    make_hollow(folder, too_large * 1_000_000)
    say(f"{len(sizes)} models of {sum(sizes)} MB together, and one of {too_large} MB")
    return names


@contextmanager
def served(options: argparse.Namespace, scratch: Path, group: LimitedGroup) -> Iterator[Daemon]:
    folder = scratch / "daemon"
    folder.mkdir()
    protect = options.protect
    policies = {
        "limits": "concurrency: {max_in_flight: 64}\nrate_limit: []\n",
        "models": f"dirs: [{scratch / 'models'}]\n",
        "timeouts": "model_load: 60s\n",
        "memory": f"eviction: {{protect_recent: {protect}, min_residency: {protect}}}\n",
    }
    models = scratch / "models"
    with daemon(folder, models=models, policies=policies, prefix=group.prefix) as running:
        yield running


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    names = make_models(scratch, options.sizes, options.limit * 2)
    asks = mixed.draw(options.requests, names, TOO_LARGE, seed=options.seed, longest=options.words)
    with (
        memory_limit(options.limit * 1_000_000) as group,
        served(options, scratch, group) as running,
        Watch(group) as watch,
    ):
        began = time.monotonic()
        until = began + options.seconds
        came = mixed.ask_all(running.url, asks, options.clients, until, _progress(len(asks), group))
        found = {
            "limit_bytes": group.limit, "weights_mb": list(options.sizes), "seed": options.seed,
            "clients": options.clients, "requests": len(asks), "words": options.words,
            "seconds": time.monotonic() - began,
            "kernel_kills": group.kills(),
            "killed_in_log": len(_KILLED.findall(running.log_text())),
            "same_daemon": running.process.poll() is None and _pid(running) == running.pid,
            "loads": len(_LOADED.findall(running.log_text())),
            "peak_bytes": peak_bytes(group),
        }  # fmt: skip
    return found | {"held_bytes": watch.most_bytes} | judged(came)


def judged(came: list[mixed.Came]) -> Json:
    """What came of the requests, by itself."""
    answered = [one.seconds for one in came if one.kind == "answered"] or [0.0]
    bad = [one for one in came if one.bad]
    return {
        "made": len(came), "kinds": mixed.by_kind(came), "reasons": mixed.by_reason(came),
        "crashed": [f"request {one.ask.number}: {one.text[:200]}" for one in bad if one.crashed],
        "unexplained": [
            f"request {one.ask.number}: {one.status} {one.code}: {one.text[:300]}"
            for one in bad if not one.explained
        ],
        "refused_that_fit": sum(
            one.code == "insufficient_memory" and one.ask.model != TOO_LARGE for one in bad
        ),
        "too_large_answered": sum(
            one.kind == "answered" and one.ask.model == TOO_LARGE for one in came
        ),
        "examples": {f"{one.status} {one.code}": one.text[:400] for one in bad},
        "answer_p50": median(answered), "answer_p99": quantile(answered, 0.99),
        "longest": max((one.seconds for one in came), default=0.0),
    }  # fmt: skip


def _pid(running: Daemon) -> int:
    """As its state folder says."""
    return int((running.state / "mlxd.pid").read_text())


def _progress(count: int, group: LimitedGroup) -> Callable[[int], None]:
    began = time.monotonic()

    def told(done: int) -> None:
        if done % 50 == 0 or done == count:
            say(f"{done} of {count}, {time.monotonic() - began:.0f} s, {group.kills()} killed")

    return told


def problems(found: Json) -> list[str]:
    wrong = [*found["crashed"], *found["unexplained"]]
    if found["made"] < found["requests"]:
        wrong.append(f"only {found['made']} requests were made in time")
    if found["kernel_kills"]:
        wrong.append(f"the kernel killed {found['kernel_kills']} processes")
    if found["killed_in_log"]:
        wrong.append(f"{found['killed_in_log']} workers ended by SIGKILL")
    if not found["same_daemon"]:
        wrong.append("the daemon is not the one that started")
    if found["too_large_answered"]:
        wrong.append("the model that cannot fit answered")
    return wrong


def page(found: Json) -> str:
    refused = found["kinds"].get("refused", 0) + found["kinds"].get("failed", 0)
    rows = [
        ["requests", str(found["made"]), str(found["requests"])],
        *([kind, str(count), ""] for kind, count in found["kinds"].items()),
        ["share refused, or failed inside a stream", f"{refused / found['made']:.1%}", ""],
        ["refused for memory, of models that fit alone", str(found["refused_that_fit"]), ""],
        ["crashes and failed loads", str(len(found["crashed"])), "0"],
        ["refusals without needed and available", str(len(found["unexplained"])), "0"],
        ["processes killed by the kernel", str(found["kernel_kills"]), "0"],
        ["workers ended by SIGKILL", str(found["killed_in_log"]), "0"],
        ["the daemon is still the same process", "yes" if found["same_daemon"] else "no", "yes"],
        ["loads", str(found["loads"]), ""],
        ["most in use, cached files included, MB", f"{found['peak_bytes'] / 1e6:.0f}", ""],
        ["most held by processes, MB", f"{found['held_bytes'] / 1e6:.0f}", ""],
        ["an answer, median and p99, s",
         f"{found['answer_p50']:.2f}, {found['answer_p99']:.2f}", ""],
        ["longest wait, s", f"{found['longest']:.1f}", ""],
        ["all of it, s", f"{found['seconds']:.0f}", ""],
    ]  # fmt: skip
    words = [
        f"Models of {', '.join(map(str, found['weights_mb']))} MB"
        f" ({sum(found['weights_mb'])} MB together) for daemon and workers in a memory cgroup of"
        f" {found['limit_bytes'] / 1e6:.0f} MB; {found['clients']} clients; seed {found['seed']}.",
        f"Four endpoints by turns, streams and whole answers, prompts of 2 to {found['words']}",
        "words, answers of 4 to 256 tokens, some hang-ups, two hot models at a time, and one that",
        "never fits.",
    ]
    reasons = [[reason, str(count)] for reason, count in found["reasons"].items()]
    quoted = [f"- {reason}: `{text}`" for reason, text in found["examples"].items()]
    return report.page(
        "Mixed requests under a memory limit", found, words,
        table.grid(["what", "seen", "wanted"], rows),
        table.grid(["refused or failed because of", "times"], reasons), quoted or ["None."],
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
    return report.publish(options, "memory-limit", found, page(found))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--limit", type=int, default=LIMIT, help="megabytes of the memory cgroup")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="megabytes of models")
    parser.add_argument("--words", type=int, default=3000, help="of the longest prompts")
    parser.add_argument("--protect", default="2s", help="from eviction, after use and after a load")
    parser.add_argument("--seconds", type=float, default=1800.0, help="after which it has failed")
    parser.add_argument("--seed", type=int, default=0)
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.requests, options.limit, options.sizes = 16, SHORT_LIMIT, SHORT_SIZES
        options.seconds, options.clients, options.words, options.protect = 120.0, 3, 150, "0s"
    return options


if __name__ == "__main__":
    raise SystemExit(main())
