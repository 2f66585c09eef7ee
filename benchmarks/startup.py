"""What the daemon costs beside its answers: its start, its commands, its memory, its idling, its
/health; and how soon a stream goes on whose worker was killed.

python benchmarks/startup.py [--short]
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import table
from benchmarks.client import APIS, read_answer, request_bytes, run_load
from benchmarks.measure import quantile
from benchmarks.model import make_prompts
from benchmarks.servers import HERE, Daemon
from benchmarks.throughput import make_model, say

_POLL = 0.005
_AT_ONCE = 8
_PAUSE = 0.02
"""Seconds: no stream goes on sooner in another worker."""
_COMMANDS = {
    "status": ["status"], "version": ["--version"], "check": ["policy", "check"],
}  # fmt: skip
_IMPATIENT = """\
schema: mlxd/v1
worker:
  spares: {spares}
  backoff: {{base: 1ms, max: 1ms}}
  budget: [{{max: 1000, per: 300s}}]
replay: {{attempts: 10}}
quarantine: {{kills: 1000}}
"""


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Every figure, by name."""
    folder = make_model("tiny", scratch)
    figures = time_to_live(folder, scratch, options.starts)
    say("started")
    with served(folder, scratch / "served") as daemon:
        time.sleep(1.0)
        figures["rss_start_mb"] = daemon.watched.rss_bytes() / 1e6
        figures |= commands(scratch / "served", options.starts)
        say("told")
        figures["health_loading_p99_ms"] = health_while_loading(daemon, options.loads)
        say("loaded")
        figures["health_streaming_p99_ms"] = health_while_streaming(daemon, folder, options.seconds)
        say("streamed")
        ask_many(daemon, options.requests)
        figures["rss_after_mb"] = daemon.watched.rss_bytes() / 1e6
        say("asked")
        figures["idle_core_percent"] = idle(daemon, options.idle)
    for spares in (0, 1):
        figures |= replaced(folder, scratch / f"spares-{spares}", spares, options.kills)
        say(f"killed with {spares} spares")
    return figures


@contextmanager
def served(folder: Path, scratch: Path, policies: Path = HERE / "policies") -> Iterator[Daemon]:
    scratch.mkdir(exist_ok=True)
    daemon = Daemon(folder, scratch, policies=policies)
    try:
        daemon.until_ready()
        yield daemon
    finally:
        daemon.watched.stop()


def time_to_live(folder: Path, scratch: Path, starts: int) -> dict[str, float]:
    """From the start of the process to the first 200 of /livez, medians: elapsed, and of CPU."""
    taken: list[float] = []
    used: list[float] = []
    for number in range(starts + 1):
        here = scratch / f"start-{number}"
        here.mkdir()
        began = time.perf_counter()
        daemon = Daemon(folder, here)
        try:
            while not _is_live(daemon.port):
                time.sleep(0.002)
            taken.append(time.perf_counter() - began)
            used.append(daemon.watched.cpu_seconds())
        finally:
            daemon.watched.stop()
    # The first one may have had to compile the sources.
    return {"livez_seconds": median(taken[1:]), "livez_cpu_seconds": median(used[1:])}


def commands(scratch: Path, times: int) -> dict[str, float]:
    """Milliseconds of each command, medians: a whole process, with a daemon that runs."""
    program = [sys.executable, "-m", "mlxd"]
    places = ["--state", str(scratch / "state"), "--policies", str(HERE / "policies")]
    figures = {}
    for name, command in _COMMANDS.items():
        taken = []
        for _ in range(times + 1):
            began = time.perf_counter()
            subprocess.run(
                [*program, *command, *([] if name == "version" else places)],
                check=True, stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(HERE.parent)},
            )  # fmt: skip
            taken.append(time.perf_counter() - began)
        figures[f"cli_{name}_ms"] = median(taken[1:]) * 1e3
    return figures


def replaced(folder: Path, scratch: Path, spares: int, kills: int) -> dict[str, float]:
    """From a worker's SIGKILL to the next token of the stream that it served, median and worst."""
    policies = scratch / "policies"
    shutil.copytree(HERE / "policies", policies)
    (policies / "supervision.yaml").write_text(_IMPATIENT.format(spares=spares))
    taken = []
    with served(folder, scratch, policies) as daemon:
        _post(daemon.port, {"model": daemon.model, "keep_alive": -1})
        for _ in range(kills):
            _until_spare(daemon.port, spares)
            taken.append(_kill_to_token(daemon.port, daemon.model))
    name = f"kill_{'with' if spares else 'without'}_spare"
    return {f"{name}_seconds": median(taken), f"{name}_worst_seconds": max(taken)}


def _until_spare(port: int, spares: int) -> None:
    deadline = time.monotonic() + 60.0
    while sum(one["state"] == "ready" for one in _health(port)["spares"]) < spares:
        if time.monotonic() > deadline:
            raise RuntimeError("no spare is ready")
        time.sleep(0.05)


def _kill_to_token(port: int, model: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120.0)
    body = {"model": model, "prompt": "kill", "options": {"num_predict": 100_000}}
    connection.request("POST", "/api/generate", json.dumps(body))
    response = connection.getresponse()
    for _ in range(5):
        response.readline()
    (pid,) = _serving(port)
    os.kill(pid, signal.SIGKILL)
    began = last = time.perf_counter()
    while True:
        record = json.loads(response.readline())
        if record.get("done") or "error" in record:
            raise RuntimeError(f"it ended before: {record}")
        before, last = last, time.perf_counter()
        if last - before > _PAUSE and _serving(port) not in ([pid], []):
            break  # until then what had come already is read
    connection.close()
    return last - began


def _serving(port: int) -> list[int]:
    return [one["pid"] for one in _health(port)["workers"] if one["state"] == "serving"]


def _health(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30.0)
    connection.request("GET", "/health")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def _is_live(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def health_while_loading(daemon: Daemon, loads: int) -> float:
    """Over several loads; the model is unloaded between them, and stays after the last."""
    taken: list[float] = []
    for number in range(loads):
        if number:
            _post(daemon.port, {"model": daemon.model, "keep_alive": 0})
        load = {"model": daemon.model, "keep_alive": -1}
        taken += _health_beside(daemon, _post, daemon.port, load)
    return quantile(taken, 0.99) * 1e3


def health_while_streaming(daemon: Daemon, folder: Path, seconds: float) -> float:
    prompts = make_prompts(folder, _AT_ONCE, "health")
    taken: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        taken += _health_beside(daemon, _stream, daemon.port, daemon.model, prompts, 256)
    return quantile(taken, 0.99) * 1e3


def _health_beside(daemon: Daemon, work: Callable[..., None], *arguments: Any) -> list[float]:
    """Seconds that each /health took while `work` ran in another process."""
    taken: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30.0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(time.sleep, 0).result()
        running: Future[None] = pool.submit(work, *arguments)
        while not running.done():
            began = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            taken.append(time.perf_counter() - began)
            time.sleep(_POLL)
        running.result()
    connection.close()
    return taken


def _stream(port: int, model: str, prompts: list[str], tokens: int) -> None:
    api = APIS["openai"]
    requests = [request_bytes(api.path, api.body(model, p, tokens, True)) for p in prompts]
    for exchange in run_load(port, requests, 120.0, lambda: None):
        read_answer(exchange, api, stream=True)


def _post(port: int, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120.0)
    connection.request("POST", "/api/generate", json.dumps(body))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(content.decode("utf-8", "replace"))


def ask_many(daemon: Daemon, requests: int) -> None:
    """Short answers, streamed and whole by turns, some at a time."""
    api = APIS["openai"]
    for first in range(0, requests, _AT_ONCE):
        stream = bool(first // _AT_ONCE % 2)
        count = min(_AT_ONCE, requests - first)
        batch = [
            request_bytes(api.path, api.body(daemon.model, f"number {first + i}", 4, stream))
            for i in range(count)
        ]
        for exchange in run_load(daemon.port, batch, 120.0, lambda: None):
            read_answer(exchange, api, stream=stream)


def idle(daemon: Daemon, seconds: float) -> float:
    """Percent of one core that daemon and worker use with nothing to do."""
    time.sleep(2.0)
    used, began = daemon.watched.cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    used = daemon.watched.cpu_seconds() - used
    return used / (time.perf_counter() - began) * 100.0


def report(figures: dict[str, float], options: argparse.Namespace) -> str:
    rows = [
        [f"/livez after the start of `mlxd serve`, median of {options.starts}", "s",
         f"{figures['livez_seconds']:.2f}", "0.7"],
        ["CPU time until then", "s", f"{figures['livez_cpu_seconds']:.2f}", ""],
        *(
            [f"`mlxd {' '.join(command)}`, the whole process", "ms",
             f"{figures[f'cli_{name}_ms']:.0f}", "150" if name == "status" else ""]
            for name, command in _COMMANDS.items()
        ),
        *(
            [f"from SIGKILL of a worker to its stream's next token, {words}", "s",
             f"{figures[f'kill_{name}_spare_seconds']:.2f}", ""]
            for name, words in (("without", "no spare"), ("with", "with a spare"))
        ),
        ["RSS of the daemon, without workers, at start", "MB",
         f"{figures['rss_start_mb']:.1f}", "80"],
        [f"the same after {options.requests} requests", "MB",
         f"{figures['rss_after_mb']:.1f}", "80"],
        ["/health p99 while a model loads", "ms",
         f"{figures['health_loading_p99_ms']:.1f}", "50"],
        [f"/health p99 while {_AT_ONCE} streams run", "ms",
         f"{figures['health_streaming_p99_ms']:.1f}", "50"],
        [f"daemon and worker idle, over {options.idle:g} s", "% of a core",
         f"{figures['idle_core_percent']:.2f}", "0.5"],
    ]  # fmt: skip
    lines = [
        "# Start, memory, idling, /health",
        "",
        f"{table.today()}, {table.words(table.machine())}.",
        "",
    ]
    lines += table.grid(["what", "unit", "seen", "wanted below"], rows)
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the daemon would stay behind
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as scratch:
        figures = measure(options, Path(scratch))
    page = report(figures, options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "startup.md").write_text(page)
    whole = {"date": table.today(), "machine": table.machine(), "figures": figures}
    (options.out / "startup.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(page)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=10, help="of a worker, with and without spare")
    parser.add_argument("--seconds", type=float, default=10.0, help="of 8 streams running")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds of watching it idle")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--short", action="store_true", help="a little of each")
    options = parser.parse_args(argv)
    if options.short:
        options.starts, options.loads, options.requests, options.kills = 2, 1, 100, 2
        options.seconds, options.idle = 1.0, 3.0
    return options


if __name__ == "__main__":
    raise SystemExit(main())
