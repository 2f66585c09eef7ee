"""What a model that loads does to streams of another: their gaps alone, and while it loads.

python benchmarks/load_beside.py [--rounds 6] [--megabytes 400] [--json]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.client import APIS, BadAnswer, read_answer, request_bytes, run_load
from benchmarks.measure import quantile
from benchmarks.throughput import make_sized, say
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
Span = tuple[float, float]
STREAMS = 4
WANTED_RATIO = 2.0
WANTED_STEP = 0.020
"""Seconds; below it a step is shorter than what the system gives a process at a time."""
_CALIBRATED_STEP = 0.030
_MOST_LAYERS = 40
_API = APIS["openai"]
_STEADY, _LOADED = "steady", "loaded"


@dataclass(frozen=True)
class Round:
    """Gaps of one load of streams, each with when it ended (perf_counter)."""

    gaps: list[tuple[float, float]]

    @property
    def seconds(self) -> list[float]:
        return [gap for _, gap in self.gaps]

    def within(self, spans: list[Span]) -> list[float]:
        """Gaps of which some part lies in a span."""
        return [
            gap
            for end, gap in self.gaps
            if any(end > first and end - gap < last for first, last in spans)
        ]


def stream(port: int, tokens: int) -> Round:
    """So many streams, from the moment at which all of them have begun."""
    requests = [
        request_bytes(_API.path, _API.body(_STEADY, f"tell of number {n}", tokens, True))
        for n in range(STREAMS)
    ]
    began: list[float] = []
    exchanges = run_load(port, requests, 300.0, lambda: began.append(time.perf_counter()))
    streams = [read_answer(exchange, _API, stream=True) for exchange in exchanges]
    if short := [answer.tokens for answer in streams if answer.tokens != tokens]:
        raise BadAnswer(f"{short[0]} tokens instead of {tokens}")
    all_begun = max(answer.times[0] for answer in streams)
    return Round(
        [
            (began[0] + b, b - a)
            for answer in streams
            for a, b in pairwise(answer.times)
            if a >= all_begun
        ]
    )


def beside(running: Daemon, tokens: int, seconds: float) -> tuple[Round, list[Span]]:
    """The same while the other model is loaded, unloaded and loaded again.

    Returns when loads ran, too; they end with the last that begins before `seconds` are over.
    """
    with ThreadPoolExecutor(1) as pool:
        loads = pool.submit(_load_repeatedly, running, time.perf_counter() + seconds)
        return stream(running.port, tokens), loads.result()


def _load_repeatedly(running: Daemon, until: float) -> list[Span]:
    spans = []
    with httpx.Client(base_url=running.url, timeout=120) as client:
        _until_streams_run(client)
        while (began := time.perf_counter()) < until:
            _post(client, {"model": _LOADED, "keep_alive": -1})
            spans.append((began, time.perf_counter()))
            _post(client, {"model": _LOADED, "keep_alive": 0})
            _until_gone(client)
    return spans


def _post(client: httpx.Client, body: Json) -> None:
    answer = client.post("/api/generate", json=body)
    if answer.status_code != 200:
        raise BadAnswer(answer.text)


def _until_streams_run(client: httpx.Client) -> None:
    while client.get("/health").json()["active_requests"] < STREAMS:
        time.sleep(0.05)


def _until_gone(client: httpx.Client) -> None:
    while _LOADED in {model["name"] for model in client.get("/health").json()["cached_models"]}:
        time.sleep(0.05)


@contextmanager
def served(scratch: Path, name: str) -> Iterator[Daemon]:
    folder = scratch / name
    folder.mkdir()
    policies = {
        "limits": "rate_limit: []\n",
        "models": f"dirs: [{scratch / 'models'}]\ndefaults: {{ttl: never}}\n",
        "memory": "eviction: {protect_recent: 0s, min_residency: 0s}\n",
    }
    with daemon(folder, models=scratch / "models", policies=policies) as running:
        yield running


def calibrate(options: argparse.Namespace, scratch: Path) -> int:
    """Layers of a model with the step that is wanted on this machine."""
    layers = options.layers or 2
    while not options.layers:
        make_sized("stepping", scratch, {_STEADY: layers})
        with served(scratch, f"calibrated-{layers}") as running:
            stream(running.port, 4)
            step = fmean(stream(running.port, 48).seconds)
        say(f"{layers} layers: a step of {step * 1e3:.1f} ms")
        if step >= _CALIBRATED_STEP * 0.9 or layers == _MOST_LAYERS:
            return layers
        layers = min(_MOST_LAYERS, max(layers + 1, math.ceil(layers * _CALIBRATED_STEP / step)))
    make_sized("stepping", scratch, {_STEADY: layers})
    return layers


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    """Rounds alone and beside loads take turns: a slower hour is slower for both."""
    layers = calibrate(options, scratch)
    make_sized("bank", scratch, {_LOADED: options.megabytes})
    alone: list[float] = []
    loading: list[float] = []
    rounds: list[Json] = []
    spans: list[Span] = []
    with served(scratch, "served") as running:
        stream(running.port, 8)
        step = fmean(stream(running.port, 16).seconds)
        tokens = max(16, math.ceil(options.seconds / step))
        for number in range(options.rounds):
            quiet = stream(running.port, tokens).seconds
            busy, loads = beside(running, tokens * 2, options.seconds)
            overlapping = busy.within(loads)
            alone += quiet
            loading += overlapping
            spans += loads
            rounds.append({"alone_p99": quantile(quiet, 0.99), "loads": len(loads)})
            if overlapping:
                rounds[-1]["loading_p99"] = quantile(overlapping, 0.99)
            say(f"round {number + 1}: {rounds[-1]}")
    return {
        "judged": not options.short,
        "streams": STREAMS, "layers": layers, "megabytes": options.megabytes,
        "parameters": _parameters(scratch), "loads": len(spans),
        "load_p50": median(last - first for first, last in spans),
        "gaps_alone": len(alone), "gaps_loading": len(loading),
        "step_mean": fmean(alone), "step_p50": median(alone), "loading_p50": median(loading),
        "alone_p99": quantile(alone, 0.99), "loading_p99": quantile(loading, 0.99),
        "alone_max": max(alone), "loading_max": max(loading),
        "ratio_p50": _ratio(median(loading), median(alone)),
        "ratio_p99": _ratio(quantile(loading, 0.99), quantile(alone, 0.99)),
        "ratio_max": _ratio(max(loading), max(alone)), "rounds": rounds,
    }  # fmt: skip


def _ratio(loading: float, alone: float) -> float:
    """Records that came together have no gap, where the client itself had to wait for a core."""
    return loading / max(alone, 1e-6)


def _parameters(scratch: Path) -> int:
    return (scratch / "models" / _STEADY / "model.safetensors").stat().st_size // 4


def problems(found: Json) -> list[str]:
    wrong: list[str] = []
    if not found["judged"]:
        return wrong
    if found["ratio_p99"] > WANTED_RATIO:
        wrong.append(f"gaps while a model loads are {found['ratio_p99']:.2f} times as long (p99)")
    if found["step_mean"] < WANTED_STEP:
        wrong.append(f"a step of {found['step_mean'] * 1e3:.1f} ms proves little")
    return wrong


def page(found: Json) -> str:
    ms = report.milliseconds
    rows = [
        ["alone", str(found["gaps_alone"]), ms(found["step_p50"]), ms(found["alone_p99"]),
         ms(found["alone_max"]), ""],
        ["while the other loads", str(found["gaps_loading"]), ms(found["loading_p50"]),
         ms(found["loading_p99"]), ms(found["loading_max"]), ""],
        ["ratio", "", f"{found['ratio_p50']:.2f}",
         f"{found['ratio_p99']:.2f}", f"{found['ratio_max']:.2f}",
         f"p99 at most {WANTED_RATIO:g}"],
    ]  # fmt: skip
    words = [
        f"{found['streams']} streams of a model of {found['parameters'] / 1e6:.1f} M parameters;"
        f" another of {found['megabytes']} MB is loaded {found['loads']} times,"
        f" {found['load_p50']:.1f} s each (median), with its process.",
        "A gap is the time between two records of one stream, as its client sees them; while a",
        "model loads, those that lie in a load with some part.",
    ]
    header = ["gaps", "number", "p50 ms", "p99 ms", "max ms", "wanted"]
    return report.page("Streams beside a load", found, words, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "load-beside", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=4, help="alone, and beside loads")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each half of a round")
    parser.add_argument("--megabytes", type=int, default=400, help="of the model that loads")
    parser.add_argument("--layers", type=int, help="of the one that streams; else calibrated")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.rounds, options.seconds, options.megabytes, options.layers = 1, 1.0, 20, 1
    return options


if __name__ == "__main__":
    raise SystemExit(main())
