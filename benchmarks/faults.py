"""Engine processes that are killed, stopped and broken under streams of two models.

Every stream's text is compared with what the same request got before; what the other model's
streams notice, how soon it is known, and what is left behind afterwards is measured beside it.

python benchmarks/faults.py [--faults 200] [--family full|sliding|hybrid] [--storm] [--json]
"""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.measure import quantile
from benchmarks.polling import Polling, Sample
from benchmarks.servers import HERE
from benchmarks.streams import Ask, Stream, Streams, draw_asks, run
from benchmarks.throughput import say
from benchmarks.workers import Life, Residue, Workers
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
Span = tuple[float, float]
MODELS = ("left", "right")
EACH = 4
"""Streams of each model."""
KINDS = {
    "kill -9": signal.SIGKILL,
    "SIGSTOP": signal.SIGSTOP,
    "SIGSEGV": signal.SIGSEGV,
    "exit(70)": signal.SIGUSR1,  # mortal.py
}
STALL = 2.0
SPACING = 2.0
"""Of an answer's length, at most, before each fault: else some meet more than replays allow."""
WANTED_EXACT = 0.95
WANTED_RATIO = 2.0
WANTED_NOTICED = 1.0
WANTED_ANSWER = 0.05
WANTED_STEP = 0.020
WANTED_DISTINCT = 0.30
_SLACK = 0.5
"""Between what is known and what a poll, or a look at processes, shows of it."""
_RECOVERY = 90.0
_PATIENT = 0.75
"""The share of faults, the first ones, that come when their model delivers again."""
_ROUND = 20
_TRIES = 5
_POLICIES = {
    "limits": "concurrency: {max_in_flight: 64}\nrate_limit: []\n",
    "timeouts": f"inter_token_stall: {STALL:g}s\nworker_cancel_ack: 500ms\nmodel_load: 30s\n",
    "memory": "eviction: {protect_recent: 0s, min_residency: 0s}\n",
}
_LOAD = "load: {retry: {max: 10, backoff: 100ms}}\n"
_SUPERVISION = """\
worker:
  backoff: {{base: 100ms, max: 100ms}}
  budget: [{{max: 1000, per: 300s}}]
replay: {{attempts: 3}}
quarantine: {{kills: {kills}}}
"""


@dataclass
class Fault:
    """One blow, and what followed from it."""

    number: int
    kind: str
    life: Life
    at: float
    successor: Life | None = None
    delivered: float = math.inf
    """When the model's first new token had come."""

    @property
    def model(self) -> str:
        return self.life.model

    @property
    def window(self) -> Span:
        return self.at, self.delivered


class Run:
    """A daemon under streams, and everything that is noted of it."""

    def __init__(
        self, options: argparse.Namespace, running: Daemon, asks: list[list[Ask]], spacing: float
    ) -> None:
        self.options = options
        self.spacing = spacing
        self.running = running
        self.chance = random.Random(options.seed)
        self.faults: list[Fault] = []
        self.quiet: list[Span] = []
        self.unrecovered: list[str] = []
        self._left: list[str] = []
        self.workers = Workers(running.pid, running.state)
        self.polling = Polling(running.port)
        self.streams = Streams(running.port, asks, EACH, options.seed)

    def run(self) -> None:
        with self.workers, self.polling, self.streams:
            self._settle()
            for first in range(0, self.options.faults, _ROUND):
                self._round(range(first, min(first + _ROUND, self.options.faults)))
            self._settle()

    def _round(self, numbers: Sequence[int]) -> None:
        """Faults, and then as long a time without any as they took to be got over."""
        for number in numbers:
            self._strike(number)
        self._settle()
        latest = self.faults[-len(numbers) :]
        link(latest, self.workers, self.streams.all)
        taken = sum(min(fault.delivered, time.monotonic()) - fault.at for fault in latest)
        time.sleep(0.5)
        began = time.monotonic()
        time.sleep(taken if self.options.quiet is None else self.options.quiet)
        self.quiet.append((began, time.monotonic()))
        say(f"{numbers[-1] + 1} of {self.options.faults} faults, {self._words()}")

    def _words(self) -> str:
        kinds = Counter(stream.kind for stream in self.streams.done)
        return f"{len(self.streams.done)} streams ended: {dict(kinds)}"

    def _strike(self, number: int) -> None:
        model, kind = self._draw()
        patient = not self.options.storm and number < self.options.faults * _PATIENT
        if patient:
            self._recover(model)
        time.sleep(self.chance.uniform(0, self.spacing))
        life = self._alive(model)
        if life is None:
            self.unrecovered.append(f"fault {number}: model {model} has no worker to strike")
            return
        fault = Fault(number, kind, life, time.monotonic())
        try:
            os.kill(life.pid, KINDS[kind])
        except ProcessLookupError:
            self._strike(number)
            return
        self.faults.append(fault)

    def _draw(self) -> tuple[str, str]:
        """By chance; but each kind comes about as often as any other."""
        if not self._left:
            self._left = list(KINDS)
            self.chance.shuffle(self._left)
        return self.chance.choice(MODELS), self._left.pop()

    def _alive(self, model: str) -> Life | None:
        """One that was not struck yet."""
        struck = {fault.life.pid for fault in self.faults}
        found: list[Life] = []

        def there() -> bool:
            life = self.workers.of(model)
            if life is not None and life.pid not in struck:
                found.append(life)
            return bool(found)

        return found[0] if _until(there, _RECOVERY) else None

    def _settle(self) -> None:
        for model in MODELS:
            self._recover(model)

    def _recover(self, model: str) -> None:
        """Until each stream of it that was there at its last fault is over or delivers again."""
        last = next((f for f in reversed(self.faults) if f.model == model), None)
        since = last.at if last is not None else 0.0
        met = self.streams.of(model)

        def back() -> bool:
            there = self.workers.of(model, since)
            if there is None or not any(s.heard > there.seen for s in self.streams.of(model)):
                return False
            return all(s.ended < math.inf or s.heard > there.seen for s in met)

        if not _until(back, _RECOVERY):
            at = f"after fault {last.number} ({last.kind})" if last is not None else "at first"
            self.unrecovered.append(f"model {model} did not recover within {_RECOVERY:g} s {at}")


def _until(fact: Callable[[], bool], within: float) -> bool:
    deadline = time.monotonic() + within
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def link(faults: list[Fault], workers: Workers, streams: list[Stream]) -> None:
    """Each fault with the worker that came after, and with that one's first token."""
    for fault in faults:
        fault.successor = workers.after(fault.life)
        if fault.successor is None:
            continue
        born = fault.successor.seen
        own = [s for s in streams if s.ask.model == fault.model and s.ended > born]
        fault.delivered = min(
            (next((at for at, _ in stream.pieces if at > born), math.inf) for stream in own),
            default=math.inf,
        )


# -- models, daemon, and the texts without faults


def make_models(options: argparse.Namespace, scratch: Path) -> None:
    """In a process of its own: this one stays free of mlx."""
    folders = [str(scratch / "models" / name) for name in MODELS]
    command = [sys.executable, str(HERE / "mortal.py"), *folders]
    command += ["--layers", str(options.layers), "--pace", str(options.pace)]
    subprocess.run([*command, "--family", *options.family], check=True)


@contextmanager
def served(options: argparse.Namespace, scratch: Path, name: str) -> Iterator[Daemon]:
    folder = scratch / name
    folder.mkdir()
    trusted = ", ".join(f"{model}: {{trust_remote_code: true}}" for model in MODELS)
    models = scratch / "models"
    policies = {
        **_POLICIES,
        "models": f"dirs: [{models}]\ndefaults: {{ttl: never}}\nmodels: {{{trusted}}}\n{_LOAD}",
        "supervision": _SUPERVISION.format(kills=options.kills),
    }
    with daemon(folder, models=models, policies=policies) as running:
        yield running


def pool(count: int, tokens: tuple[int, int], seed: int) -> list[list[Ask]]:
    """Of each model; the two are never asked the same."""
    return [draw_asks(model, count, tokens, seed) for model in MODELS]


def undisturbed(running: Daemon, asks: list[list[Ask]]) -> list[Stream]:
    """Every request once, so many at a time as later.

    On a busy machine a step may take longer than the stall policy: some are asked again. Raises
    ValueError when one is never answered.
    """
    with ExitStack() as stack:
        pools = [stack.enter_context(ThreadPoolExecutor(EACH)) for _ in asks]
        work = [
            pool.submit(_answered, running, ask)
            for pool, own in zip(pools, asks, strict=True)
            for ask in own
        ]
        return [one.result() for one in work]


def _answered(running: Daemon, ask: Ask) -> Stream:
    for _ in range(_TRIES):
        stream = run(running.port, Stream(ask, time.monotonic()))
        if stream.kind == "finished":
            return stream
        say(f"without any fault: {stream.status} {stream.code} {stream.error[:200]}")
    raise ValueError(f"without any fault: never answered: {ask}")


def gaps(streams: list[Stream]) -> list[float]:
    return [b - a for stream in streams for (a, _), (b, _) in pairwise(stream.pieces)]


def distinct(stream: Stream) -> float:
    """The share of a text's records that it has once only; a record is a token."""
    texts = [text for _, text in stream.pieces]
    return len(set(texts)) / len(texts)


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    make_models(options, scratch)
    asks = pool(options.asks, options.tokens, options.seed)
    with served(options, scratch, "served") as running:
        first = undisturbed(running, asks)
        say(f"{len(first)} undisturbed answers")
        began = time.monotonic()
        before = _residue(running, scratch)
        usual = median(stream.ended - stream.began for stream in first)
        spacing = usual * SPACING if options.spacing is None else options.spacing
        say(f"an answer takes {usual:.1f} s: up to {spacing:.1f} s before each fault")
        noted = Run(options, running, asks, spacing)
        noted.run()
        after = _left(options, running, scratch, before)
        if options.log is not None:
            options.log.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(running.log, options.log)
    seconds = time.monotonic() - began
    streams = noted.streams.done
    link(noted.faults, noted.workers, streams)
    texts = {stream.ask: stream.text for stream in first}
    return {
        "judged": not options.short, "family": options.family, "storm": options.storm,
        "layers": options.layers, "pace": options.pace, "seed": options.seed,
        "kills": options.kills, "seconds": seconds,
        "asks": options.asks * len(MODELS), "wanted_faults": options.faults,
        "distinct_least": min(map(distinct, first)),
        **Judged(noted, streams, texts).found(),
        **polled(noted.polling.samples, noted.faults, noted.workers),
        "before": vars(before), **after, "unrecovered": noted.unrecovered,
    }  # fmt: skip


def _residue(running: Daemon, scratch: Path) -> Residue:
    running.http.close()
    time.sleep(1.5)
    return Residue.of(running.pid, running.state)


def _left(options: argparse.Namespace, running: Daemon, scratch: Path, before: Residue) -> Json:
    """Until nothing is left that was not there before, or for so long; both models are asked."""
    again = pool(1, (4, 4), options.seed + 1)
    answers = [run(running.port, Stream(own[0], time.monotonic())) for own in again]
    failed = [f"{s.ask.model}: {s.code} {s.error[:200]}" for s in answers if s.kind != "finished"]
    deadline = time.monotonic() + (10 if options.short else 30)
    while True:
        time.sleep(1.0)
        after = Residue.of(running.pid, running.state)
        clean = after.descriptors <= before.descriptors and not after.zombies + after.strays
        if clean or time.monotonic() > deadline:
            break
    health = _get(running.port)
    return {
        "after": vars(after), "asked_afterwards": failed,
        "active_afterwards": health["active_requests"],
        "active_models_afterwards": health["active_model_requests"],
    }  # fmt: skip


def _get(port: int) -> Json:
    body: Json = httpx.get(f"http://127.0.0.1:{port}/health").json()
    return body


# -- what came of the streams


class Judged:
    """What the streams tell, with what is known of the faults."""

    def __init__(self, noted: Run, streams: list[Stream], texts: dict[Ask, str]) -> None:
        self._noted = noted
        self._streams = streams
        self._texts = texts
        self._met = {id(stream): self._faults_of(stream) for stream in streams}

    def found(self) -> Json:
        interrupted = [s for s in self._streams if self._met[id(s)]]
        late = [s for s in self._streams if not self._met[id(s)] and self._is_late(s)]
        late = [s for s in late if not self._was_quarantined(s)]
        refused = [s for s in self._streams if not self._met[id(s)] and self._was_quarantined(s)]
        known = {id(s) for s in [*interrupted, *late, *refused]}
        calm = [s for s in self._streams if id(s) not in known]
        return {
            "faults": len(self._noted.faults), "streams": len(self._streams),
            "by_kind": {kind: self._of_kind(kind) for kind in KINDS},
            "interrupted": self._came(interrupted), "late": self._came(late),
            "calm": self._came(calm), "refused": self._came(refused),
            "errors": dict(Counter(_error(s) for s in self._streams if s.kind != "finished")),
            "strange": [self._words(s) for s in self._streams if self._what(s) in _STRANGE],
            "not_calm": [self._words(s) for s in calm if self._what(s) != "exact"],
            **self._gaps(),
        }  # fmt: skip

    def _faults_of(self, stream: Stream) -> list[Fault]:
        return [
            fault
            for fault in self._noted.faults
            if fault.model == stream.ask.model and stream.began <= fault.at < stream.ended
        ]

    def _is_late(self, stream: Stream) -> bool:
        """It began while its model was down."""
        return any(
            fault.model == stream.ask.model and fault.at <= stream.began < fault.delivered
            for fault in self._noted.faults
        )

    def _was_quarantined(self, stream: Stream) -> bool:
        """The same request was held to be the cause of faults that it had met before."""
        return stream.code == "request_quarantined" and any(
            self._met[id(other)] and other.ask == stream.ask and other.ended <= stream.ended
            for other in self._streams
        )

    def _of_kind(self, kind: str) -> Json:
        faults = [fault for fault in self._noted.faults if fault.kind == kind]
        numbers = {fault.number for fault in faults}
        met = [s for s in self._streams if numbers & {f.number for f in self._met[id(s)]}]
        firsts = [f.delivered - f.at for f in faults if f.delivered < math.inf]
        return {
            "faults": len(faults), **self._came(met),
            "first_token_p50": median(firsts) if firsts else None,
            "first_token_max": max(firsts, default=None),
            "without_first_token": len(faults) - len(firsts),
        }  # fmt: skip

    def _came(self, streams: list[Stream]) -> Json:
        came = Counter(self._what(stream) for stream in streams)
        return {"count": len(streams)} | {w: came[w] for w in ("exact", "wrong", "error", "else")}

    def _what(self, stream: Stream) -> str:
        expected = self._texts[stream.ask]
        if stream.kind == "other":
            return "else"
        if stream.kind == "finished":
            return "exact" if stream.text == expected else "wrong"
        return "error" if expected.startswith(stream.text) else "wrong"

    def _words(self, stream: Stream) -> str:
        faults = [f"{f.kind} of {f.number}" for f in self._met[id(stream)]]
        text, expected = stream.text, self._texts[stream.ask]
        common = _common(text, expected)
        return (
            f"{self._what(stream)}: {stream.ask}, {stream.kind} {stream.status} {stream.code}"
            f" {stream.error[:160]}; {len(stream.pieces)} records,"
            f" {common} of {len(expected)} characters as expected,"
            f" then {text[common : common + 20]!r} for {expected[common : common + 20]!r};"
            f" met {', '.join(faults) or 'nothing'}"
        )

    def _gaps(self) -> Json:
        """Of streams while the other model was down, and while nothing was."""
        down = {
            model: [f.window for f in self._noted.faults if f.model == model] for model in MODELS
        }
        beside: list[float] = []
        quiet: list[float] = []
        for stream in self._streams:
            (other,) = set(MODELS) - {stream.ask.model}
            met = min((fault.at for fault in self._met[id(stream)]), default=math.inf)
            for (a, _), (b, _) in pairwise(stream.pieces):
                if b >= met:  # from then on it waits for its turn among suspects, too
                    break
                if _meets(down[other], a, b) and not _meets(down[stream.ask.model], a, b):
                    beside.append(b - a)
                elif any(first <= a and b <= last for first, last in self._noted.quiet):
                    quiet.append(b - a)
        if not beside or not quiet:
            return {"gaps_beside": len(beside), "gaps_quiet": len(quiet)}
        found: Json = {"gaps_beside": len(beside), "gaps_quiet": len(quiet)}
        for name, values in (("beside", beside), ("quiet", quiet)):
            found |= {
                f"{name}_p50": median(values), f"{name}_p99": quantile(values, 0.99),
                f"{name}_max": max(values),
            }  # fmt: skip
        return found | {
            f"ratio_{q}": found[f"beside_{q}"] / max(found[f"quiet_{q}"], 1e-6)
            for q in ("p50", "p99", "max")
        }


def _error(stream: Stream) -> str:
    """Which one it is, without what differs from one to the next."""
    return re.sub(r"\d+", "N", f"{stream.kind} {stream.code}: {stream.error[:400]}")


_STRANGE = ("wrong", "else")


def _common(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    shorter = min(len(one), len(other))
    return next((n for n in range(shorter) if one[n] != other[n]), shorter)


def _meets(spans: list[Span], first: float, last: float) -> bool:
    return any(last > a and first < b for a, b in spans)


# -- what /health and /readyz told


def polled(samples: list[Sample], faults: list[Fault], workers: Workers) -> Json:
    noticed: dict[str, list[float]] = {"dead": [], "stopped": []}
    unseen = 0
    health = [sample for sample in samples if sample.path == "/health"]
    for fault in faults:
        told = next(
            (s.sent + s.took for s in health if s.sent > fault.at and _knows(s, fault)), None
        )
        seen = min(told or math.inf, fault.life.gone)
        if seen == math.inf:
            unseen += 1
            continue
        noticed["stopped" if fault.kind == "SIGSTOP" else "dead"].append(seen - fault.at)
    found: Json = {
        "polls": len(samples), "unnoticed": unseen,
        "lies": lies(samples, faults),
        "unready": sorted(
            {f"{s.path} {s.status}: {s.text.strip()}" for s in samples if s.status != 200}
        ),
    }  # fmt: skip
    for name, taken in noticed.items():
        found[f"{name}_noticed_p50"] = median(taken) if taken else None
        found[f"{name}_noticed_max"] = max(taken, default=None)
    for path, name in (("/health", "health"), ("/readyz", "readyz")):
        took = [sample.took for sample in samples if sample.path == path]
        for q, value in (("p50", median(took)), ("p99", quantile(took, 0.99)), ("max", max(took))):
            found[f"{name}_{q}"] = value
        found[f"{name}_late"] = sum(t > WANTED_ANSWER for t in took)
    return found


def _knows(sample: Sample, fault: Fault) -> bool:
    """Whether an answer no longer names the struck worker among those that serve."""
    serving = {name.removesuffix(":latest"): pid for name, pid in sample.serving}
    if sample.status != 200:
        return False
    if fault.model not in serving:
        return True
    pid = serving[fault.model]
    return pid is not None and pid != fault.life.pid


def lies(samples: list[Sample], faults: list[Fault]) -> list[str]:
    """Answers that name a worker which cannot serve, longer than it may take to know."""
    found = []
    for fault in faults:
        known = fault.at + WANTED_NOTICED + (STALL if fault.kind == "SIGSTOP" else 0.0)
        until = fault.successor.seen if fault.successor is not None else math.inf
        told = [
            sample
            for sample in samples
            if sample.path == "/health" and sample.status == 200
            and known < sample.sent < until and not _knows(sample, fault)
        ]  # fmt: skip
        if told:
            late = told[-1].sent - fault.at
            found.append(f"{fault.kind} {fault.number}: served by /health {late:.1f} s afterwards")
    return found


# -- what is wrong, and the page


def problems(found: Json) -> list[str]:
    wrong = [*found["strange"], *found["unrecovered"], *found["asked_afterwards"]]
    wrong += [f"of a model that was well: {words}" for words in found["not_calm"]]
    wrong += found["lies"] + found["unready"]
    if found["faults"] < found["wanted_faults"]:
        wrong.append(f"only {found['faults']} faults")
    interrupted = found["interrupted"]
    if interrupted["exact"] < WANTED_EXACT * interrupted["count"]:
        wrong.append(f"{interrupted['exact']} of {interrupted['count']} interrupted were completed")
    if found["distinct_least"] < WANTED_DISTINCT:
        wrong.append(f"a text repeats itself: {found['distinct_least']:.0%} of it distinct")
    if found["unnoticed"]:
        wrong.append(f"{found['unnoticed']} faults were not noticed")
    return wrong + _residue_problems(found) + (_late(found) if found["judged"] else [])


def _residue_problems(found: Json) -> list[str]:
    before, after = found["before"], found["after"]
    wrong = [
        f"{after[what]} {what} afterwards" for what in ("zombies", "strays") if after[what] > 0
    ]
    if after["descriptors"] > before["descriptors"]:
        wrong.append(f"{after['descriptors']} descriptors after {before['descriptors']}")
    if not after["workers"] == after["folders"] == len(MODELS):
        wrong.append(f"{after['workers']} workers and {after['folders']} folders afterwards")
    if found["active_afterwards"] or found["active_models_afterwards"]:
        wrong.append(f"{found['active_afterwards']} requests are active afterwards")
    return wrong


def _late(found: Json) -> list[str]:
    wrong = []
    bounds = {
        "ratio_p99": WANTED_RATIO, "dead_noticed_max": WANTED_NOTICED,
        "stopped_noticed_max": STALL + _SLACK,
        "health_p99": WANTED_ANSWER, "readyz_p99": WANTED_ANSWER,
    }  # fmt: skip
    for name, most in bounds.items():
        if (value := found.get(name)) is not None and value > most:
            wrong.append(f"{name} is {value:.3f}, more than {most:g}")
    if (step := found.get("quiet_p50")) is None or step < WANTED_STEP:
        wrong.append(f"a step of {(step or 0.0) * 1e3:.1f} ms proves little")
    return wrong


def page(found: Json) -> str:
    columns = ("faults", "count", "exact", "wrong", "error", "else")
    streams = [
        [name, *(str(row.get(what, "")) for what in columns),
         _seconds(row.get("first_token_p50")), _seconds(row.get("first_token_max"))]
        for name, row in [
            *found["by_kind"].items(), ("all, each stream once", found["interrupted"]),
            ("began while their model was down", found["late"]),
            ("none: refused as quarantined", found["refused"]), ("none", found["calm"]),
        ]
    ]  # fmt: skip
    header = ["streams that met", "faults", "streams", "exact", "wrong", "error", "else",
              "first token p50 s", "max s"]  # fmt: skip
    words = [
        f"{found['faults']} faults in {found['seconds']:.0f} s under {EACH} streams of each of two"
        f" models ({', '.join(found['family'])}, {found['layers']} layers,"
        f" {found['pace'] * 1e3:g} ms of each step idle);"
        f" {found['asks']} different requests, greedy and seeded, at four endpoints;"
        f" {'a storm' if found['storm'] else 'most of them when the model delivers again'};"
        f" seed {found['seed']}.",
        f"The texts have at least {found['distinct_least']:.0%} distinct tokens. A stream that met",
        "several kinds of faults counts for each; the first token is the model's first new one.",
    ]
    errors = [f"- {count} times `{text}`" for text, count in found["errors"].items()]
    return report.page(
        f"Faults, {'-'.join(found['family'])} attention", found, words,
        table.grid(header, streams), errors or ["No errors."], _times(found), _residues(found),
    )  # fmt: skip


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _times(found: Json) -> list[str]:
    def ms(name: str) -> str:
        value = found.get(name)
        return "" if value is None else report.milliseconds(value)

    rows = [
        [name, *(ms(f"{key}_{q}") for q in ("p50", "p99", "max")), wanted]
        for name, key, wanted in (
            ("gaps while nothing is down", "quiet", f"p50 above {WANTED_STEP * 1e3:g}"),
            ("gaps while the other model is down", "beside", ""),
            ("a dead worker is noticed after", "dead_noticed", f"{WANTED_NOTICED * 1e3:g}"),
            ("a stopped worker is noticed after", "stopped_noticed",
             f"{STALL * 1e3:g} and a poll"),
            ("/health answers", "health", f"{WANTED_ANSWER * 1e3:g}"),
            ("/readyz answers", "readyz", f"{WANTED_ANSWER * 1e3:g}"),
        )
    ]  # fmt: skip
    ratios = [f"{found[f'ratio_{q}']:.2f}" if f"ratio_{q}" in found else "" for q in
              ("p50", "p99", "max")]  # fmt: skip
    rows.insert(2, ["ratio of the two", *ratios, f"p99 at most {WANTED_RATIO:g}"])
    grid = table.grid(["times", "p50 ms", "p99 ms", "max ms", "wanted"], rows)
    late = found["health_late"] + found["readyz_late"]
    return [*grid, "", f"{late} of {found['polls']} polls took longer than wanted."]


def _residues(found: Json) -> list[str]:
    before, after = found["before"], found["after"]
    rows = [
        [name.replace("rss", "RSS, bytes"), str(before[name]), str(after[name])] for name in before
    ]
    rows.append(["active requests", "0", str(found["active_afterwards"])])
    return table.grid(["of the daemon", "before", "after"], rows)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    name = f"faults-{'-'.join(options.family)}{'-storm' if options.storm else ''}"
    return report.conduct(options, name, measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--faults", type=int)
    parser.add_argument(
        "--family", nargs="+", default=["full"], help="of each model: full, sliding or hybrid"
    )
    parser.add_argument("--storm", action="store_true", help="faults wait for nothing")
    parser.add_argument(
        "--spacing",
        type=float,
        help="seconds before a fault, at most; else as a stream needs twice",
    )
    parser.add_argument("--quiet", type=float, help="seconds after a round; else as it needed")
    parser.add_argument("--layers", type=int, default=2, help="of the models")
    parser.add_argument("--pace", type=float, default=WANTED_STEP, help="seconds of each step")
    parser.add_argument("--asks", type=int, default=32, help="different requests of each model")
    parser.add_argument("--tokens", type=int, nargs=2, default=(60, 160), help="fewest and most")
    parser.add_argument("--kills", type=int, default=2, help="the policy quarantine.kills")
    parser.add_argument("--log", type=Path, help="where to leave a copy of the daemon's log")
    parser.add_argument("--seed", type=int, default=0)
    report.add_options(parser)
    options = parser.parse_args(argv)
    options.tokens = tuple(options.tokens)
    if options.short:
        options.asks, options.tokens = 8, (40, 80)
        options.quiet, options.kills = 2.0, 10
        options.spacing = options.spacing or 2.0
    options.faults = options.faults or (4 if options.short else 200)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
