"""What a flood of refusals does to streams: their tokens a second without it, and with it.

python benchmarks/refusals.py [--kind 429|503] [--rate 5000] [--rounds 4] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.client import APIS, BadAnswer, read_answer, request_bytes, run_load
from benchmarks.load_beside import calibrate
from benchmarks.servers import HERE, cpu_seconds
from benchmarks.throughput import say
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
STREAMS = 8
WANTED_STEP = 0.020
WANTED_RATIO = 0.85
WANTED_SECONDS = 0.010
"""For one refusal, beside the streams and without a flood."""
_MODEL = "steady"
_API = APIS["openai"]
_FLOODER = "127.0.0.2"
"""A client of its own."""
_FEW = 20.0
"""Refusals a second that are no flood."""
_PAUSE = 0.5
"""Between a window and the next: processes begin and end in it."""
_MORE = 1.4
"""Times as many tokens as a step's first time gives: it may have been a slow one."""
_POLICIES = {
    "429": "concurrency: {max_in_flight: 8, max_waiting: 0}\n"
    "rate_limit: [{requests: 300, window: 3600s}]\n",
    "503": "concurrency: {max_in_flight: 8, max_waiting: 0}\nrate_limit: []\n",
}


@dataclass(frozen=True)
class Window:
    """Some seconds of the streams; times are of perf_counter."""

    kind: str
    """quiet, few or flood."""
    began: float
    ended: float
    daemon_cpu: float
    worker_cpu: float
    flood: Json
    """What flood.py said."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Watch:
    """Measures windows of one daemon, one after the other."""

    def __init__(self, options: argparse.Namespace, running: Daemon) -> None:
        self._options = options
        self._running = running
        self.windows: list[Window] = []

    def run(self) -> list[Window]:
        with httpx.Client(base_url=self._running.url, timeout=60) as client:
            while client.get("/health").json()["active_requests"] < STREAMS:
                time.sleep(0.05)
        kinds = [*chain.from_iterable([["quiet", "flood"]] * self._options.rounds), "quiet", "few"]
        return [self._window(kind) for kind in kinds]

    def _window(self, kind: str) -> Window:
        time.sleep(_PAUSE)
        worker = self._running.workers()[0].pid
        pids = (self._running.pid, worker)
        before = [cpu_seconds(pid) for pid in pids]
        began = time.perf_counter()
        found: Json = {}
        if kind == "quiet":
            time.sleep(self._options.seconds)
        else:
            found = self._flood(_FEW if kind == "few" else self._options.rate)
            began = found["began"]
        ended = found.get("ended") or time.perf_counter()
        used = [cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True)]
        window = Window(kind, began, ended, used[0], used[1], found)
        say(f"{kind}: {window.seconds:.1f} s {found}")
        return window

    def _flood(self, rate: float) -> Json:
        options = self._options
        connections = 1 if rate == _FEW else options.connections
        command = [sys.executable, str(HERE / "flood.py"), str(self._running.port), str(rate),
                   str(options.seconds), str(connections), "--address", _FLOODER]  # fmt: skip
        if options.reconnect:
            command.append("--reconnect")
        body = _API.body(_MODEL, "tell me something else", 8, False)
        request = request_bytes(_API.path, body)
        done = subprocess.run(command, input=request, capture_output=True, check=True)
        found: Json = json.loads(done.stdout)
        if set(found["statuses"]) != {options.kind}:
            raise BadAnswer(f"not all were refused with {options.kind}: {found['statuses']}")
        return found


def stream(port: int, tokens: int) -> list[float]:
    """So many streams; when each of their tokens came (perf_counter)."""
    requests = [
        request_bytes(_API.path, _API.body(_MODEL, f"tell of number {n}", tokens, True))
        for n in range(STREAMS)
    ]
    began: list[float] = []
    exchanges = run_load(port, requests, 300.0, lambda: began.append(time.perf_counter()))
    answers = [read_answer(exchange, _API, stream=True) for exchange in exchanges]
    return sorted(began[0] + at for answer in answers for at in answer.times)


@contextmanager
def served(scratch: Path, kind: str) -> Iterator[Daemon]:
    folder = scratch / "served"
    folder.mkdir()
    policies = {
        "limits": _POLICIES[kind],
        "models": f"dirs: [{scratch / 'models'}]\ndefaults: {{ttl: never}}\n",
    }
    with daemon(folder, models=scratch / "models", policies=policies) as running:
        yield running


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    layers = calibrate(options, scratch)
    if options.layers:
        from benchmarks.throughput import make_sized

        make_sized("stepping", scratch, {_MODEL: layers})
    with served(scratch, options.kind) as running:
        stream(running.port, 4)
        short = stream(running.port, 24)
        step = (short[-1] - short[0]) / 24
        if options.kind == "429":
            _use_up(running)
        windows = 2 * options.rounds + 2
        seconds = windows * (options.seconds + _PAUSE + 1.0)
        with ThreadPoolExecutor(1) as pool:
            watched = pool.submit(Watch(options, running).run)
            times = stream(running.port, math.ceil(_MORE * seconds / step))
            found = watched.result()
    if found[-1].ended > times[-1]:
        raise BadAnswer("the streams ended before the measurement did")
    return {"judged": not options.short, "layers": layers, **figures(options, found, times)}


def _use_up(running: Daemon) -> None:
    """The flooder's quota."""
    transport = httpx.HTTPTransport(local_address=_FLOODER)
    with httpx.Client(base_url=running.url, transport=transport, timeout=60) as client:
        while client.post(_API.path, json=_API.body(_MODEL, "hi", 1, False)).status_code == 200:
            pass


def figures(options: argparse.Namespace, windows: list[Window], times: list[float]) -> Json:
    rates = [_rate(window, times) for window in windows]
    floods = [n for n, window in enumerate(windows) if window.kind == "flood"]
    ratios = [rates[n] / fmean((rates[n - 1], rates[n + 1])) for n in floods]
    quiet = [n for n, window in enumerate(windows) if window.kind == "quiet"]
    flooded = [windows[n] for n in floods]
    idle = fmean(windows[n].daemon_cpu / windows[n].seconds for n in quiet)
    refusals = sum(sum(window.flood["statuses"].values()) for window in flooded)
    more = sum(window.daemon_cpu - idle * window.seconds for window in flooded)
    few = windows[-1].flood
    return {
        "kind": options.kind, "reconnect": options.reconnect, "wanted_rate": options.rate,
        "step": STREAMS / fmean(rates[n] for n in quiet),
        "refusals_per_second": median(window.flood["rate"] for window in flooded),
        "quiet_tokens_per_second": median(rates[n] for n in quiet),
        "flooded_tokens_per_second": median(rates[n] for n in floods),
        "ratio": median(ratios), "ratios": ratios,
        "daemon_us_per_refusal": more / refusals * 1e6,
        "flood_p50": median(window.flood["p50"] for window in flooded),
        "flood_p99": median(window.flood["p99"] for window in flooded),
        "alone_p50": few["p50"], "alone_p99": few["p99"],
        "cores_quiet": _cores([windows[n] for n in quiet]), "cores_flooded": _cores(flooded),
        "windows": [asdict(window) for window in windows],
    }  # fmt: skip


def _rate(window: Window, times: list[float]) -> float:
    inside = bisect_left(times, window.ended) - bisect_left(times, window.began)
    return inside / window.seconds


def _cores(windows: list[Window]) -> Json:
    seconds = sum(window.seconds for window in windows)
    return {
        "daemon": sum(window.daemon_cpu for window in windows) / seconds,
        "worker": sum(window.worker_cpu for window in windows) / seconds,
        "flood": sum(window.flood.get("cpu", 0.0) for window in windows) / seconds,
    }


def problems(found: Json) -> list[str]:
    wrong: list[str] = []
    if not found["judged"]:
        return wrong
    if found["ratio"] < WANTED_RATIO:
        wrong.append(f"streams keep {found['ratio']:.2f} of their tokens a second")
    if found["refusals_per_second"] < 0.95 * found["wanted_rate"]:
        wrong.append(f"{found['refusals_per_second']:.0f} refusals a second were reached")
    if found["alone_p99"] > WANTED_SECONDS:
        wrong.append(f"a refusal takes {found['alone_p99'] * 1e3:.1f} ms (p99) without a flood")
    if found["step"] < WANTED_STEP:
        wrong.append(f"a step of {found['step'] * 1e3:.1f} ms proves little")
    return wrong


def page(found: Json) -> str:
    quiet, flooded = found["cores_quiet"], found["cores_flooded"]
    rows = [
        ["without", f"{found['quiet_tokens_per_second']:.1f}", f"{quiet['daemon']:.2f}",
         f"{quiet['worker']:.2f}", "", f"{found['alone_p50'] * 1e3:.2f}",
         f"{found['alone_p99'] * 1e3:.2f}"],
        ["with the flood", f"{found['flooded_tokens_per_second']:.1f}", f"{flooded['daemon']:.2f}",
         f"{flooded['worker']:.2f}", f"{flooded['flood']:.2f}", f"{found['flood_p50'] * 1e3:.2f}",
         f"{found['flood_p99'] * 1e3:.2f}"],
        ["ratio", f"{found['ratio']:.3f}", "", "", "", "", ""],
    ]  # fmt: skip
    words = [
        f"{STREAMS} streams of a model with a step of {found['step'] * 1e3:.0f} ms, and"
        f" {found['refusals_per_second']:.0f} refusals a second with status {found['kind']}"
        + (", each on a connection of its own." if found["reconnect"] else "."),
        f"One takes the daemon {found['daemon_us_per_refusal']:.0f} us of a core more. Times of"
        " refusals without a flood are",
        f"those of {_FEW:.0f} a second. A ratio is that of a window to those before and behind it.",
    ]
    header = ["", "tokens/s", "daemon cores", "worker cores", "flood cores", "p50 ms", "p99 ms"]
    return report.page("Streams beside refusals", found, words, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, f"refusals-{options.kind}", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kind", choices=sorted(_POLICIES), default="429")
    parser.add_argument("--rate", type=float, default=5000.0, help="refusals a second")
    parser.add_argument("--rounds", type=int, default=4, help="with the flood, and without")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each half of a round")
    parser.add_argument("--connections", type=int, default=32, help="of the flood")
    parser.add_argument("--reconnect", action="store_true", help="a connection for each request")
    parser.add_argument("--layers", type=int, help="of the model; else calibrated")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.rounds, options.seconds, options.layers = 1, 3.0, 1
    return options


if __name__ == "__main__":
    raise SystemExit(main())
