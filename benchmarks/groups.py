"""One long sequence beside short ones: what each waits for its tokens, and what all take.

python benchmarks/groups.py [--shape tiny-long] [--long 8000] [--rows 7] [--rounds 9] [--short]

Exit status 1 when a step of all together takes more than 1.15 times what one of the short ones and
one of the long one take, each alone, in the engine or through a daemon; or when their caches take
more than 1.3 times what they would alone. The short form judges bytes only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.model import SHAPES, make
from benchmarks.servers import HERE, Daemon
from benchmarks.streams import Ask, Stream, run
from benchmarks.throughput import say

Json = dict[str, Any]
MOST = 1.15
"""Times the step of the short ones and that of the long one together."""
MOST_BYTES = 1.3
"""Times what each takes alone."""
SHORT_TOKENS = 20
_WARM_TOKENS = 10
"""Of each stream, that are not looked at."""
_PATIENCE = 600.0


def main() -> int:
    options = _options()
    found = report.begun() | {"shape": options.shape, "long": options.long, "rows": options.rows}
    with tempfile.TemporaryDirectory(prefix="mlxd-groups-") as folder:
        model = make(Path(folder) / "models" / "m", options.shape)
        found["engine"] = _engine(model, options)
        found["daemon"] = _through_daemon(model, Path(folder), options)
    found["problems"] = list(_problems(found, timed=not options.short))
    return report.publish(options, "groups", found, _page(found))


# -- the engine


def _engine(model: Path, options: argparse.Namespace) -> Json:
    order = {
        "model": str(model), "short": SHORT_TOKENS, "rows": options.rows, "long": options.long,
        "rounds": options.rounds, "steps": options.steps,
    }  # fmt: skip
    say(f"the engine: {options.rounds} rounds of {options.steps} steps")
    done = subprocess.run(
        [sys.executable, str(HERE / "groups_run.py")], input=json.dumps(order),
        stdout=subprocess.PIPE, text=True, check=True, timeout=_PATIENCE,
    )  # fmt: skip
    *rounds, held = [json.loads(line) for line in done.stdout.splitlines()]
    return {**_medians(rounds), **held}


def _medians(rounds: Sequence[Json]) -> Json:
    """Of each figure, and of the rounds' own ratios."""
    found = {name: median(one[name] for one in rounds) for name in rounds[0]}
    ratios = [one["together"] / (one["short"] + one["long"]) for one in rounds]
    return {**found, "ratio": median(ratios), "ratios": ratios}


# -- through a daemon


def _through_daemon(model: Path, scratch: Path, options: argparse.Namespace) -> Json:
    words = _words(model, options.long)
    with _daemon(model, scratch) as port:
        loads = _Loads(port, model.name, words, options.rows, options.tokens)
        loads.together()  # it warms up
        rounds = []
        for n in range(options.rounds):
            rounds.append(loads.round())
            say(f"the daemon: round {n + 1} of {options.rounds}")
    return _medians(rounds)


@contextmanager
def _daemon(model: Path, scratch: Path) -> Iterator[int]:
    server = Daemon(model, scratch)
    try:
        server.until_ready()
        yield server.port
    finally:
        server.watched.stop()


def _words(model: Path, tokens: int) -> int:
    """How many of a prompt's words are so many tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = Ask(1, "/v1/completions", "m", 1000, 1).body()["prompt"]
    return tokens * 1000 // len(tokenizer.encode(text).ids)


class _Loads:
    """Streams that are asked for, and how long they wait for each token."""

    def __init__(self, port: int, model: str, words: int, rows: int, tokens: int) -> None:
        self._port, self._model = port, model
        self._words, self._rows, self._tokens = words, rows, tokens
        self._asked = 0

    def round(self) -> Json:
        return {"short": self.short(), "long": self.long(), "together": self.together()}

    def short(self) -> float:
        return _gap(self._all(self._begin(self._rows, SHORT_TOKENS // 2, self._tokens)))

    def long(self) -> float:
        return _gap(self._all(self._begin(1, self._words, self._tokens)))

    def together(self) -> float:
        """The short ones are asked for when the long one answers, which it does for longer."""
        long = self._begin(1, self._words, 4 * self._tokens)
        while not long[0][0].heard and long[0][1].is_alive():
            time.sleep(0.01)
        short = self._begin(self._rows, SHORT_TOKENS // 2, self._tokens)
        streams = self._all(short)
        self._all(long)
        assert long[0][0].ended > max(stream.ended for stream in streams)
        return _gap(streams)

    def _begin(self, count: int, words: int, tokens: int) -> list[tuple[Stream, threading.Thread]]:
        begun = []
        for _ in range(count):
            self._asked += 1
            ask = Ask(self._asked, "/v1/completions", self._model, words, tokens)
            stream = Stream(ask, time.monotonic())
            thread = threading.Thread(target=run, args=(self._port, stream), daemon=True)
            thread.start()
            begun.append((stream, thread))
        return begun

    def _all(self, begun: Sequence[tuple[Stream, threading.Thread]]) -> list[Stream]:
        for _, thread in begun:
            thread.join(_PATIENCE)
        streams = [stream for stream, _ in begun]
        if failed := [stream for stream in streams if stream.kind != "finished"]:
            raise RuntimeError(f"a stream {failed[0].kind}: {failed[0].code} {failed[0].error}")
        return streams


def _gap(streams: Sequence[Stream]) -> float:
    """Of a stream's tokens but the first, in the mean: they may come in bursts."""
    times = [[at for at, _ in stream.pieces[_WARM_TOKENS:]] for stream in streams]
    return median((stream[-1] - stream[0]) / (len(stream) - 1) for stream in times)


# -- what was found


def _problems(found: Json, *, timed: bool) -> Iterator[str]:
    """`timed`: whether the rounds are enough to judge times by."""
    for name in ("engine", "daemon"):
        ratio = found[name]["ratio"]
        if timed and ratio > MOST:
            yield f"{name}: all together take {ratio:.2f} times both alone, more than {MOST}"
    engine = found["engine"]
    if engine["bytes"] > MOST_BYTES * engine["ideal_bytes"]:
        yield f"their caches take {engine['bytes'] / engine['ideal_bytes']:.2f} times the ideal"


def _page(found: Json) -> str:
    rows = [
        [
            name,
            *(_ms(found[name].get(load)) for load in ("short", "long", "together", "padded")),
            f"{found[name]['ratio']:.2f}",
        ]
        for name in ("engine", "daemon")
    ]
    engine = found["engine"]
    return report.page(
        "One long sequence beside short ones",
        found,
        [
            f"{found['rows']} sequences of {SHORT_TOKENS} tokens and one of {found['long']}, shape"
            f" {found['shape']}: the time from one token to the next.",
            "Medians over rounds; the ratio is to both alone, one behind the other, in the same"
            " round; padded: all in one batch.",
        ],
        table.grid(["", "short ms", "long ms", "all ms", "padded ms", "ratio"], rows),
        [
            f"Caches: {engine['bytes'] / 1e6:.1f} MB in {engine['groups']} batches; alone"
            f" {engine['ideal_bytes'] / 1e6:.1f} MB, padded {engine['padded_bytes'] / 1e6:.1f} MB.",
        ],
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.add_options(parser)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny-long")
    parser.add_argument("--long", type=int, default=8000, help="its tokens")
    parser.add_argument("--rows", type=int, default=7, help="short ones")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    options = parser.parse_args()
    if options.short:
        options.rounds, options.steps, options.long, options.tokens = 1, 20, 3000, 200
    return options


if __name__ == "__main__":
    sys.exit(main())
