"""How soon an edit of a policy is in force, what a look at a policy costs, and what the edits do to
requests: a run of swaps under many requests, and a stream under edits of everything.

python benchmarks/policy_latency.py [--edits 200] [--swaps 200 --requests 10000] [--stream 60]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import table
from benchmarks.client import APIS, read_answer, request_bytes, run_load
from benchmarks.measure import quantile
from benchmarks.model import make_prompts
from benchmarks.servers import HERE, Daemon
from benchmarks.throughput import make_model, say

Json = dict[str, Any]
WANTED_MS = 300.0
WANTED_LOOKUP_US = 2.0
STREAMS = 4
_POLL = 0.002
_LATE = 10.0
_CONTEXT = "max_position_embeddings"
_LOOKUPS = 200_000
_ASK = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_ANSWER = b"x-mlxd-policy: "


# -- from the writer's close or rename to the first answer of the next generation


class Probe:
    """Asks for the generation over one connection, again and again, and notes when it changed."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.generation = self._ask()

    def newer(self) -> float:
        """Wait for a newer generation; returns the time at which it was answered."""
        deadline = time.perf_counter() + _LATE
        while (found := self._ask()) <= self.generation:
            if time.perf_counter() > deadline:
                raise RuntimeError(f"no generation after {self.generation} within {_LATE:g} s")
            time.sleep(_POLL)
        now = time.perf_counter()
        self.generation = found
        return now

    def close(self) -> None:
        self._sock.close()

    def _ask(self) -> int:
        self._sock.sendall(_ASK)
        answer = b""
        while not answer.endswith(b"ok\n"):
            piece = self._sock.recv(65536)
            if not piece:
                raise RuntimeError(f"closed after {answer!r}")
            answer += piece
        return int(answer.lower().partition(_ANSWER)[2].split(b"\r\n", 1)[0])


def edit_in_place(file: Path, text: str) -> float:
    with file.open("w") as stream:
        stream.write(text)
    return time.perf_counter()


def edit_by_rename(file: Path, text: str) -> float:
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text)
    temporary.replace(file)
    return time.perf_counter()


STYLES: dict[str, Callable[[Path, str], float]] = {
    "in place": edit_in_place,
    "rename": edit_by_rename,
}


def limits(number: int) -> str:
    """limits.yaml of this folder, with another number of slots."""
    whole = (HERE / "policies" / "limits.yaml").read_text()
    return whole.replace("max_in_flight: 32", f"max_in_flight: {32 + number}")


def latencies(daemon: Daemon, file: Path, edits: int) -> list[float]:
    """Seconds per edit, the styles by turns; pauses differ, so as not to beat with the watcher."""
    draw = random.Random(edits)
    styles = list(STYLES.values())
    probe = Probe(daemon.port)
    taken = []
    for number in range(1, edits + 1):
        time.sleep(draw.uniform(0.03, 0.15))
        written = styles[number % len(styles)](file, limits(number))
        taken.append(probe.newer() - written)
    probe.close()
    return taken


@contextmanager
def streams(daemon: Daemon, folder: Path) -> Iterator[None]:
    """As many streams as the report says run for the length of the block, in another process."""
    prompts = make_prompts(folder, STREAMS, "edits")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    client = context.Process(target=_stream, args=(daemon.port, daemon.model, prompts, stop))
    client.start()
    try:
        deadline = time.monotonic() + 60
        while _active(daemon.port) < STREAMS:
            if time.monotonic() > deadline:
                raise RuntimeError("the streams do not run")
            time.sleep(0.02)
        yield
    finally:
        stop.set()
        client.join()


def _stream(port: int, model: str, prompts: list[str], stop: Any) -> None:
    api = APIS["openai"]
    requests = [request_bytes(api.path, api.body(model, p, 512, True)) for p in prompts]
    while not stop.is_set():
        for exchange in run_load(port, requests, 120.0, lambda: None):
            read_answer(exchange, api, stream=True)


def _active(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    return int(json.loads(answer.partition(b"\r\n\r\n")[2])["active_requests"])


def measure_latency(scratch: Path, edits: int) -> list[Json]:
    """One row for an idle daemon, one for a busy one."""
    folder = make_model("tiny", scratch)
    policies = scratch / "policies"
    shutil.copytree(HERE / "policies", policies)
    (scratch / "served").mkdir()
    daemon = Daemon(folder, scratch / "served", policies=policies)
    rows = []
    try:
        daemon.until_ready()
        _until_watched(daemon.port)
        for name, load in (("idle", nullcontext()), (f"{STREAMS} streams run", None)):
            with load if load is not None else streams(daemon, folder):
                rows.append(_row(name, latencies(daemon, policies / "limits.yaml", edits)))
            say(f"{edits} edits while {name}")
    finally:
        daemon.watched.stop()
    return rows


def _until_watched(port: int) -> None:
    """The watcher begins after the start."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        if json.loads(answer.partition(b"\r\n\r\n")[2])["policy"]["watching"]:
            return
        time.sleep(0.02)
    raise RuntimeError("the system tells of no edits here")


def _row(name: str, seconds: list[float]) -> Json:
    taken = [one * 1e3 for one in seconds]
    return {
        "while": name, "edits": len(taken), "p50_ms": statistics.median(taken),
        "p99_ms": quantile(taken, 0.99), "max_ms": max(taken), "all_ms": taken,
    }  # fmt: skip


# -- what a request pays


def lookup_microseconds() -> float:
    """One look at one policy through the store, as every request makes them; the best of five."""
    from mlxd.policy.load import load
    from mlxd.policy.store import PolicyStore

    store = PolicyStore(load())
    names = {"store": store}
    statement = "store.current.limits.concurrency.max_in_flight"
    return min(timeit.repeat(statement, globals=names, number=_LOOKUPS, repeat=5)) / _LOOKUPS * 1e6


# -- what edits do to requests


def _long_model(scratch: Path) -> Path:
    """The tiny one with room for a long stream, and not called so: `tiny` is a chain."""
    folder = scratch / "models" / "long"
    shutil.copytree(make_model("tiny", scratch), folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {_CONTEXT: 65536}))
    return folder


def measure_swaps(scratch: Path, swaps: int, requests: int) -> Json:
    """Every answer against the values of the generation that it names."""
    from tests.support.daemon import daemon
    from tests.support.policy_swaps import Values, swap

    folder = _long_model(scratch)
    policies = {"limits": Values.of(0).text()}
    with daemon(scratch, models=folder.parent, policies=policies) as running:
        began = time.monotonic()
        run = swap(running, folder.name, swaps=swaps, requests=requests)
    say(f"{swaps} swaps")
    return {
        "swaps": len(run.values) - 1, "requests": len(run.told), "kinds": dict(run.kinds),
        "misfits": len(run.misfits()), "backwards": run.backwards,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def measure_stream(scratch: Path, seconds: float, reloads: int) -> Json:
    """Token by token against the same stream from a daemon that nobody edits."""
    from tests.support.daemon import daemon
    from tests.support.policy_stream import everything, stream_under_reloads, undisturbed

    folder = _long_model(scratch)
    edited, untouched = scratch / "edited", scratch / "untouched"
    edited.mkdir()
    untouched.mkdir()
    with everything(edited, folder.parent, folder.name) as (running, policies):
        run = stream_under_reloads(running, policies, folder.name, reloads=reloads, seconds=seconds)
        touched = len(policies.keys) - len(run.unchanged)
    count = len(run.tokens)
    say(f"a stream of {count} tokens under {run.reloads} reloads")
    output = {"limits": f"rate_limit: []\ntokens: {{max_output: {count}}}\n"}
    times = {"timeouts": "generation: 1h\n"}
    with daemon(untouched, models=folder.parent, policies=output | times) as running:
        alone = undisturbed(running, folder.name, count)
    return {
        "seconds": run.seconds, "reloads": run.reloads, "keys": touched, "tokens": count,
        "exact": run.tokens == alone, "workers_kept": run.workers[0] <= run.workers[1],
    }  # fmt: skip


# -- the report


def report(found: Json) -> str:
    lines = [
        "# Edits of policies", "",
        f"{found['date']}, {table.words(found['machine'])}.", "",
        "From the writer's close or rename of `limits.yaml` (by turns) to the first answer of a",
        "newer generation; `/livez` is asked every 2 ms over one connection.", "",
    ]  # fmt: skip
    rows = [
        [row["while"], str(row["edits"]), f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}",
         f"{row['max_ms']:.0f}", f"{WANTED_MS:.0f}"]
        for row in found["latency"]
    ]  # fmt: skip
    header = ["in force, while", "edits", "p50 ms", "p99 ms", "max ms", "wanted p99 below"]
    lines += [*table.grid(header, rows), ""]
    rows = [
        ["one policy looked up", "µs", f"{found['lookup_us']:.2f}", f"below {WANTED_LOOKUP_US:g}"],
        *_swap_rows(found["swaps"]),
        *_stream_rows(found["stream"]),
    ]
    lines += table.grid(["what", "unit", "seen", "wanted"], rows)
    return "\n".join(lines) + "\n"


def _swap_rows(swaps: Json) -> list[list[str]]:
    what = f"answers of another generation than they name, {swaps['swaps']} swaps"
    return [
        [what, f"of {swaps['requests']}", str(swaps["misfits"]), "0"],
        ["answers of an older generation than the one before", "", str(swaps["backwards"]), "0"],
    ]


def _stream_rows(stream: Json) -> list[list[str]]:
    what = f"a stream of {stream['seconds']:.0f} s under {stream['reloads']} reloads"
    return [
        [f"{what}: keys changed", "", str(stream["keys"]), ""],
        [f"{what}: token-exact", f"{stream['tokens']} tokens", _yes(stream["exact"]), "yes"],
        [f"{what}: its worker stayed", "", _yes(stream["workers_kept"]), "yes"],
    ]


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemon would stay behind
    found: Json = {"date": table.today(), "machine": table.machine()}
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as name:
        parts = [Path(name) / part for part in ("latency", "swaps", "stream")]
        for part in parts:
            part.mkdir()
        found["latency"] = measure_latency(parts[0], options.edits)
        found["lookup_us"] = lookup_microseconds()
        found["swaps"] = measure_swaps(parts[1], options.swaps, options.requests)
        found["stream"] = measure_stream(parts[2], options.stream, options.reloads)
    page = report(found)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "policy-latency.md").write_text(page)
    (options.out / "policy-latency.json").write_text(json.dumps(found, indent=1) + "\n")
    print(page)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--edits", type=int, default=200, help="while idle, and again under load")
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000, help="while they happen, at least")
    parser.add_argument("--stream", type=float, default=60.0, help="seconds of a stream")
    parser.add_argument("--reloads", type=int, default=50, help="of everything, during the stream")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--short", action="store_true", help="a little of each")
    options = parser.parse_args(argv)
    if options.short:
        options.edits, options.swaps, options.requests = 6, 5, 100
        options.stream, options.reloads = 0.0, 5
    return options


if __name__ == "__main__":
    raise SystemExit(main())
