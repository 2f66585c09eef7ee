"""Prompts beside answers and beside each other: what waits for a long one, and what is read twice.

python benchmarks/prefill.py [--rounds 5] [--short] [--json]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.measure import quantile
from benchmarks.model import words
from benchmarks.servers import Daemon
from benchmarks.throughput import make_model, say

Json = dict[str, Any]
Messages = list[Json]
SHAPE = "tiny-long"
STALL = 0.1
"""limits.batching.stall_target, as it is shipped."""
SHORT, LONG, PREFIX, HISTORY, TURN = 20, 7500, 2000, 3700, 10
"""Tokens of prompts."""
STREAMS, SHARERS = 4, 8
HEAD_START = 0.05
WANTED_LONG = 1.25
WANTED_TURN = 0.02
WANTED_RESTART = 0.1
_TEMPLATE_TOKENS = 8
_LEARNING_CHUNKS = 2
"""So many gaps are not counted: the first chunks of a daemon find out what a chunk takes."""


@dataclass
class Asked:
    """One streamed request; times are of the monotonic clock."""

    sent: float
    times: list[float] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.times[0] - self.sent

    @property
    def text(self) -> str:
        deltas = [choice["delta"] for one in self._parsed for choice in one["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def usage(self) -> Json:
        (usage,) = [one["usage"] for one in self._parsed if one.get("usage")]
        return dict(usage)

    @property
    def computed(self) -> int:
        """Tokens of its prompt that were read for it."""
        details = self.usage.get("prompt_tokens_details") or {}
        return int(self.usage["prompt_tokens"]) - int(details.get("cached_tokens") or 0)

    @property
    def _parsed(self) -> list[Json]:
        return [json.loads(record) for record in self.records]


class Client:
    """Asks one daemon, each time on a connection of its own."""

    def __init__(self, port: int, model: str, folder: Path, seed: str) -> None:
        from tokenizers import Tokenizer

        self._port, self._model = port, model
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._draw = random.Random(seed)

    def text(self, tokens: int) -> str:
        """About as many, in the model's template; none alike."""
        text = words(self._draw, tokens)
        ends = [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]
        return text[: ends[max(1, tokens - _TEMPLATE_TOKENS) - 1]]

    def prompt(self, tokens: int) -> Messages:
        return [{"role": "user", "content": self.text(tokens)}]

    def ask(self, messages: Messages, tokens: int = 4) -> Asked:
        body = {
            "model": self._model, "messages": messages, "max_tokens": tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.connect()
        asked = Asked(time.monotonic())
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(answer.read().decode())
        while line := answer.readline():
            if line.startswith(b"data: {"):
                if b'"content":"' in line.replace(b'"content":""', b"").replace(b": ", b":"):
                    asked.times.append(time.monotonic())
                asked.records.append(line[6:])
        connection.close()
        return asked


class Bench:
    def __init__(self, client: Client, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self._pool = pool

    def round(self) -> Json:
        """Everything once. What is compared is measured close together."""
        client = self._client
        alone = median(client.ask(client.prompt(SHORT)).ttft for _ in range(5))
        long = client.ask(client.prompt(LONG)).ttft
        behind, beside_short = self._behind()
        gaps, beside_streams = self._beside_streams()
        first, second, again = self._turns()
        return {
            "short_alone": alone, "short_behind": behind,
            "long_alone": long, "long_beside_short": beside_short,
            "long_beside_streams": beside_streams,
            "gaps": gaps, "gap_p99": quantile(gaps, 0.99), "gap_max": max(gaps),
            "sharers_computed": self._sharers(),
            "turn_cold": first, "turn_second": second, "turn_computed": again,
        }  # fmt: skip

    def _later(self, messages: Messages, tokens: int = 4) -> Future[Asked]:
        return self._pool.submit(self._client.ask, messages, tokens)

    def _behind(self) -> tuple[float, float]:
        """A short prompt while a long one is read, and that one."""
        short, long = self._client.prompt(SHORT), self._client.prompt(LONG)
        reading = self._later(long)
        time.sleep(HEAD_START)
        return self._client.ask(short).ttft, reading.result().ttft

    def _beside_streams(self) -> tuple[list[float], float]:
        """Gaps of running streams while a long prompt is read, and that one."""
        prompts = [self._client.prompt(SHORT) for _ in range(STREAMS)]
        long = self._client.prompt(LONG)
        streams = [self._later(prompt, 4000) for prompt in prompts]
        time.sleep(0.5)
        reading = self._client.ask(long)
        first, last = reading.sent, reading.times[0]
        gaps = [gap for stream in streams for gap in _counted(stream.result().times, first, last)]
        return gaps, reading.ttft

    def _sharers(self) -> int:
        """Tokens that are read for requests which begin alike, beyond those of their own."""
        prefix = self._client.text(PREFIX)
        asks = [
            [{"role": "system", "content": prefix}, *self._client.prompt(SHORT)]
            for _ in range(SHARERS)
        ]
        asked = [one.result() for one in [self._later(messages) for messages in asks]]
        return sum(one.computed for one in asked)

    def _turns(self) -> tuple[float, float, int]:
        """A conversation's first turn, and its next one."""
        history = self._client.prompt(HISTORY)
        first = self._client.ask(history)
        more = [{"role": "assistant", "content": first.text}, *self._client.prompt(TURN)]
        second = self._client.ask([*history, *more])
        return first.ttft, second.ttft, second.computed


def restarts(folder: Path, scratch: Path, options: argparse.Namespace) -> Json:
    """The same prompt before a daemon ends, and as the first long one of the next."""
    cold, warm, computed = [], [], []
    history: Messages = []
    for number in range(options.rounds + 1):
        daemon = Daemon(folder, scratch)
        try:
            daemon.until_ready()
            client = Client(daemon.port, folder.name, folder, f"{options.seed} {number}")
            client.ask(client.prompt(SHORT))  # loads the model
            if history:
                again = client.ask(history)
                warm.append(again.ttft)
                computed.append(again.computed)
            if number < options.rounds:
                history = client.prompt(HISTORY)
                cold.append(client.ask(history).ttft)
        finally:
            daemon.watched.stop()
    found = {"restart_cold": median(cold), "restart_warm": median(warm)}
    say(f"restarts: {_figures(found)}, computed {computed}")
    return found | {"restart_computed": median(computed)}


def _counted(times: list[float], first: float, last: float) -> list[float]:
    """Gaps of a stream between two times, but for those of the chunks from which is learned."""
    start = max(0, bisect_right(times, first) - 1)
    gaps = [(b - a, b) for a, b in pairwise(times[start:]) if a < last]
    usual = median(gap for gap, _ in gaps)
    chunks = [end for gap, end in gaps if gap > 5 * usual]
    from_then = chunks[_LEARNING_CHUNKS - 1] if len(chunks) >= _LEARNING_CHUNKS else first
    return [gap for gap, end in gaps if end > from_then]


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    folder = make_model(SHAPE, scratch)
    daemon = Daemon(folder, scratch)
    try:
        daemon.until_ready()
        with ThreadPoolExecutor(16) as pool:
            bench = Bench(Client(daemon.port, folder.name, folder, options.seed), pool)
            rounds = []
            for number in range(options.rounds + 1):
                began = time.monotonic()
                found = bench.round()
                say(f"round {number}: {time.monotonic() - began:.1f} s, {_figures(found)}")
                if number:
                    rounds.append(found)
    finally:
        daemon.watched.stop()
    restarted = restarts(folder, scratch, options)
    gaps = [gap for one in rounds for gap in one.pop("gaps")]
    return {
        "judged": not options.short, "rounds": rounds, "gap_p99": quantile(gaps, 0.99),
        **{name: median(one[name] for one in rounds) for name in rounds[0] if name != "gap_p99"},
        **restarted,
    }  # fmt: skip


def _figures(found: Json) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "gaps")


Bound = tuple[str, Callable[[Json], float], Callable[[Json], float], str]
BOUNDS: tuple[Bound, ...] = (
    (
        f"TTFT of {SHORT} tokens behind {LONG}, ms",
        lambda f: f["short_behind"] * 1e3,
        lambda f: (f["short_alone"] + 2 * STALL) * 1e3,
        "alone + 2 stall targets",
    ),
    (
        f"gap p99 of {STREAMS} streams meanwhile, ms",
        lambda f: f["gap_p99"] * 1e3,
        lambda f: STALL * 1e3,
        "the stall target",
    ),
    (
        f"TTFT of {LONG} tokens beside {STREAMS} streams, of alone",
        lambda f: f["long_beside_streams"] / f["long_alone"],
        lambda f: WANTED_LONG,
        "",
    ),
    (
        f"and beside {SHORT} tokens, of alone",
        lambda f: f["long_beside_short"] / f["long_alone"],
        lambda f: WANTED_LONG,
        "",
    ),
    (
        f"tokens read for {SHARERS} requests with one new beginning of {PREFIX}",
        lambda f: f["sharers_computed"],
        lambda f: PREFIX + SHARERS * 2 * SHORT,
        "once, and what is their own",
    ),
    (
        f"TTFT of the second turn behind {HISTORY} tokens, of the first",
        lambda f: f["turn_second"] / f["turn_cold"],
        lambda f: WANTED_TURN,
        "",
    ),
    (
        f"TTFT of {HISTORY} tokens behind a restart, of before it",
        lambda f: f["restart_warm"] / f["restart_cold"],
        lambda f: WANTED_RESTART,
        "",
    ),
)


def problems(found: Json) -> list[str]:
    if not found["judged"]:
        return []
    return [
        f"{what}: {figure(found):.3g}, and at most {most(found):.3g} were wanted"
        for what, figure, most, _ in BOUNDS
        if figure(found) > most(found)
    ]


def page(found: Json) -> str:
    rows = [
        [what, f"{figure(found):.3g}", f"{most(found):.3g}", why]
        for what, figure, most, why in BOUNDS
    ]
    ms = report.milliseconds
    words_ = [
        f"Medians of {len(found['rounds'])} rounds. Alone: {SHORT} tokens"
        f" {found['short_alone'] * 1e3:.1f} ms, {LONG} tokens {ms(found['long_alone'])} ms,"
        f" {HISTORY} tokens {ms(found['turn_cold'])} ms to the first token.",
    ]
    header = ["what", "found", "at most", ""]
    return report.page("Prompts beside answers", found, words_, table.grid(header, rows))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "prefill", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="beside one that does not count")
    parser.add_argument("--seed", default="1")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.rounds = 1
    return options


if __name__ == "__main__":
    raise SystemExit(main())
