"""An hour of requests, reloads and killed workers: what grows, and which promise breaks.

python benchmarks/soak.py [--minutes 60] [--requests 10000] [--reloads 10000] [--json]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.measure import quantile
from benchmarks.polling import Polling
from benchmarks.servers import HERE
from benchmarks.streams import PATHS, Ask, Stream, run
from benchmarks.throughput import say
from benchmarks.workers import Residue, Workers
from tests.support.daemon import Daemon, daemon

Json = dict[str, Any]
MODELS = ("left", "right")
MOST = 5
"""max_in_flight, at most; reloads move it below that and back."""
TOGETHER = 7
"""Clients; they ask at once, so that slots are short."""
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1, signal.SIGSTOP)
WANTED_SLOPE = 1.0
"""MB of memory in an hour."""
_LONGEST_PROMPT = 200
_TOO_LONG, _UNKNOWN = 400, 404
_OF_LENGTH = "limits.tokens.max_prompt"
"""In the words of a refusal."""
_WINDOW = "24h"
_WARM_UP = 0.2
_KILL_SHOWS = 20.0
"""Seconds for which a kill explains what becomes of requests."""
_OF_KILLS = frozenset(
    ("worker_crashed", "worker_stalled", "model_load_failed", "breaker_open", "model_quarantined",
     "request_quarantined", "deadline_exceeded", "models_busy")
)  # fmt: skip
_APPLIED_WITHIN = 10.0
_LOAD = "load: {retry: {max: 10, backoff: 100ms}}\n"
_SUPERVISION = (
    "worker: {backoff: {base: 100ms, max: 100ms}, budget: [{max: 10000, per: 300s}]}\n"
    "replay: {attempts: 3}\n"
)
_TIMEOUTS = "inter_token_stall: 2s\nworker_cancel_ack: 500ms\nfirst_token: 10s\nmodel_load: 15s\n"


class Gate:
    """Lets actors act, and shuts until none of them does."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextmanager
    def acting(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def shut(self) -> Iterator[None]:
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()


class Pace:
    """So many turns spread over so many seconds, `together` of them at a time."""

    def __init__(self, count: int, seconds: float, together: int = 1) -> None:
        self._count = count
        self._every = seconds * together / max(1, count)
        self._together = together
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._next = 0

    def turns(self) -> Iterator[int]:
        """For as many threads as like to share them."""
        while True:
            with self._lock:
                turn, self._next = self._next, self._next + 1
            if turn >= self._count:
                return
            at = self._began + turn // self._together * self._every
            time.sleep(max(0.0, at - time.monotonic()))
            yield turn


@dataclass
class Address:
    """A client, and what the rate rule owes it."""

    name: str
    quota: int
    left: int
    """Requests until somebody else comes in its place."""
    counted: int = 0
    refused: int = 0

    @property
    def expected(self) -> int:
        """Refusals that the rule had to give."""
        return max(0, self.counted + self.refused - self.quota)

    def note(self, stream: Stream) -> bool:
        """Whether the rule was kept, if this was asked after everything that was noted.

        What is wrong in itself does not count; where the quota is used up, nobody looks at it.
        """
        self.left -= 1
        if stream.status == _UNKNOWN:
            return True
        used_up = self.counted >= self.quota
        self.refused += stream.status == 429
        self.counted += not (stream.status == 429 or _is_too_long(stream))
        return used_up == (stream.status == 429)


def _is_too_long(stream: Stream) -> bool:
    """Where the worker says so late, it is the last record of a stream that has begun."""
    return stream.status == _TOO_LONG or _OF_LENGTH in stream.error


class Addresses:
    """Of loopback, one after the other. Where the system has one only, everybody is one client,
    and only the sum of its refusals can be judged.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.all: list[Address] = []
        self.many = _can_ask_from("127.0.0.2")
        self.quota = options.quota if self.many else options.requests * 4 // 5
        self._chance = random.Random(options.seed)
        self._lock = threading.Lock()
        self._note_lock = threading.Lock()

    def new(self) -> Address:
        with self._lock:
            if self.all and not self.many:
                return self.all[0]
            number = len(self.all) + 2
            name = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            left = self.quota + self._chance.randint(2, 12) if self.many else sys.maxsize
            self.all.append(Address(name if self.many else "127.0.0.1", self.quota, left))
            return self.all[-1]

    def note(self, address: Address, stream: Stream) -> bool:
        with self._note_lock:
            return address.note(stream) or not self.many


def _can_ask_from(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


@dataclass
class Kills:
    """When, and of which kind. Times are monotonic."""

    times: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def explain(self, stream: Stream) -> bool:
        return any(stream.began - _KILL_SHOWS < at < stream.ended for at in list(self.times))


@dataclass(frozen=True)
class Lull:
    """The daemon while nobody asks it for anything."""

    at: float
    active: int
    residue: Residue

    def told(self, began: float) -> Json:
        return {"at": self.at - began, "active": self.active, **asdict(self.residue)}


class Soak:
    """Clients, an editor and a killer at work on one daemon."""

    def __init__(
        self, options: argparse.Namespace, running: Daemon, scratch: Path, addresses: Addresses
    ) -> None:
        self.options = options
        self.running = running
        self.scratch = scratch
        self.seconds = options.minutes * 60.0
        self.gate = Gate()
        self.addresses = addresses
        self.kills = Kills()
        self.streams: list[Stream] = []
        self.misses: list[str] = []
        """What went otherwise than it must."""
        self.lulls: list[Lull] = []
        self.applied = self.refused = 0
        self.workers = Workers(running.pid, running.state)
        self.polling = Polling(running.port)
        self._over = threading.Event()
        self._requests = Pace(options.requests, self.seconds, TOGETHER)
        self._reloads = Pace(options.reloads, self.seconds)
        self._kills = Pace(options.kills, self.seconds)

    def run(self) -> None:
        with self.workers, self.polling, ThreadPoolExecutor(TOGETHER + 3) as pool:
            self._lull()
            work = [pool.submit(self._ask, number) for number in range(TOGETHER)]
            work += [pool.submit(self._edit), pool.submit(self._kill)]
            began = time.monotonic()
            for number in range(1, self.options.lulls + 1):
                at = began + self.seconds * number / self.options.lulls
                time.sleep(max(0.0, at - time.monotonic()))
                self._lull()
                say(self._words(time.monotonic() - began))
            for one in work:
                one.result()
            self._lull()

    def _words(self, seconds: float) -> str:
        held = self.lulls[-1].residue
        return (
            f"{seconds:.0f} s: {len(self.streams)} requests, {self.applied} reloads,"
            f" {len(self.kills.times)} kills, {held.rss / 1e6:.1f} MB, {held.descriptors} fds,"
            f" {len(self.misses)} misses"
        )

    # -- clients

    def _ask(self, number: int) -> None:
        chance = random.Random(f"{self.options.seed}/{number}")
        address = self.addresses.new()
        for turn in self._requests.turns():
            with self.gate.acting():
                stream = self._one(chance, turn, address)
            self.streams.append(stream)
            if not self.addresses.note(address, stream):
                self.misses.append(f"the rate rule of {address}: {_words(stream)}")
            if wrong := self._misfit(stream):
                self.misses.append(wrong)
            if address.left <= 0:
                address = self.addresses.new()

    def _one(self, chance: random.Random, turn: int, address: Address) -> Stream:
        kind = chance.random()
        longest = 2 * _LONGEST_PROMPT if self.addresses.many else 20
        ask = Ask(
            number=turn, path=chance.choice(PATHS),
            model="nobody" if kind < 0.03 else chance.choice(MODELS),
            words=longest if 0.03 <= kind < 0.06 else chance.randint(2, 20),
            tokens=chance.randint(2, 40), seed=turn if chance.random() < 0.5 else None,
        )  # fmt: skip
        leave = chance.randint(1, 5) if chance.random() < 0.05 else sys.maxsize
        stream = Stream(ask, time.monotonic())
        return run(self.running.port, stream, source=address.name, leave_after=leave)

    def _misfit(self, stream: Stream) -> str:
        """Why this is no answer that may come; empty when it may."""
        ask = stream.ask
        if ask.model not in MODELS:
            return "" if stream.status == _UNKNOWN else f"unknown, and {_words(stream)}"
        if stream.kind in ("finished", "left") or stream.status == 429:
            return ""
        if stream.status == 503 and stream.code == "overloaded":
            return ""
        if _is_too_long(stream) and ask.words > _LONGEST_PROMPT:
            return ""
        code = stream.code
        if stream.kind == "failed" and (code in _OF_KILLS or code == "error in the stream"):
            return "" if self.kills.explain(stream) else f"nothing was killed, and {_words(stream)}"
        return _words(stream)

    # -- the editor

    def _edit(self) -> None:
        """By turns it says so, or leaves it to the daemon to see; some edits are wrong."""
        chance = random.Random(f"{self.options.seed}/edits")
        for turn in self._reloads.turns():
            with self.gate.acting():
                if chance.random() < 0.02:
                    self._edit_wrongly()
                self._edit_once(turn, said=turn % 2 == 0)

    def _edit_once(self, turn: int, *, said: bool) -> None:
        before = self.running.generation()
        self.running.edit("limits", limits(MOST - (turn + 1) % 3, self.addresses.quota))
        if said:
            outcome = self.running.reload()
            if outcome["result"] == "refused":
                self.misses.append(f"reload {turn}: {outcome}")
        deadline = time.monotonic() + _APPLIED_WITHIN
        while (now := self.running.generation()) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        if now == before + 1:
            self.applied += 1
        else:
            self.misses.append(f"reload {turn}: generation {now} after {before}")

    def _edit_wrongly(self) -> None:
        before = self.running.generation()
        self.running.edit("limits", "concurrency: {max_in_flight: none}\n")
        outcome = self.running.reload()
        if outcome["result"] == "refused" and self.running.generation() == before:
            self.refused += 1
        else:
            self.misses.append(f"a wrong edit: {outcome['result']}")

    # -- the killer

    def _kill(self) -> None:
        chance = random.Random(f"{self.options.seed}/kills")
        for _ in self._kills.turns():
            time.sleep(chance.uniform(0.0, 0.5))
            with self.gate.acting():
                life = self.workers.of(chance.choice(MODELS))
                if life is None:
                    continue
                number = chance.choice(SIGNALS)
                self.kills.times.append(time.monotonic())
                self.kills.kinds[number.name] += 1
                try:
                    os.kill(life.pid, number)
                except ProcessLookupError:
                    self.kills.kinds[number.name] -= 1

    # -- what is held

    def _lull(self) -> None:
        """Nobody acts; both models serve."""
        with self.gate.shut():
            for model in MODELS:
                self._until_serving(model)
            time.sleep(0.3)
            residue, active = self._settled()
        self.lulls.append(Lull(time.monotonic(), active, residue))

    def _until_serving(self, model: str) -> None:
        deadline = time.monotonic() + 60.0
        while True:
            address = self.addresses.new()
            stream = Stream(Ask(0, PATHS[0], model, 2, 2), time.monotonic())
            run(self.running.port, stream, source=address.name)
            self.addresses.note(address, stream)
            if stream.kind == "finished" or stream.status == 429:
                return
            if time.monotonic() > deadline:
                self.misses.append(f"in a lull: {_words(stream)}")
                return
            time.sleep(0.2)

    def _settled(self) -> tuple[Residue, int]:
        """As soon as it holds what it held at first, or after some seconds."""
        deadline = time.monotonic() + 10.0
        while True:
            active = int(self.running.health()["active_requests"])  # over the one connection kept
            residue = Residue.of(self.running.pid, self.running.state)
            first = self.lulls[0].residue if self.lulls else residue
            same = residue.descriptors <= first.descriptors and residue.workers == len(MODELS)
            if (same and not residue.zombies and not active) or time.monotonic() > deadline:
                return residue, active
            time.sleep(0.2)


def _words(stream: Stream) -> str:
    return f"{stream.kind} {stream.status} {stream.code} {stream.error[:200]} of {stream.ask}"


def limits(most: int, quota: int) -> str:
    return (
        f"concurrency: {{max_in_flight: {most}}}\n"
        f"rate_limit: [{{name: each, requests: {quota}, window: {_WINDOW}}}]\n"
        f"tokens: {{max_prompt: {_LONGEST_PROMPT}}}\n"
    )


@contextmanager
def served(scratch: Path, quota: int) -> Iterator[Daemon]:
    folder = scratch / "daemon"
    folder.mkdir()
    models = scratch / "models"
    trusted = ", ".join(f"{model}: {{trust_remote_code: true}}" for model in MODELS)
    policies = {
        "limits": limits(MOST, quota),
        "models": f"dirs: [{models}]\ndefaults: {{ttl: never}}\nmodels: {{{trusted}}}\n{_LOAD}",
        "timeouts": _TIMEOUTS,
        "supervision": _SUPERVISION,
    }
    with daemon(folder, models=models, policies=policies) as running:
        yield running


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    folders = [str(scratch / "models" / name) for name in MODELS]
    command = [sys.executable, str(HERE / "mortal.py"), *folders, "--layers", "2"]
    subprocess.run([*command, "--family", "full", "sliding"], check=True)
    addresses = Addresses(options)
    with served(scratch, addresses.quota) as running:
        began = time.monotonic()
        soak = Soak(options, running, scratch, addresses)
        soak.run()
        seconds = time.monotonic() - began
        alive = running.process.poll() is None
    samples = soak.polling.samples
    took = [sample.took for sample in samples if sample.path == "/health"]
    return {
        "judged": not options.short, "seed": options.seed, "seconds": seconds,
        "requests": len(soak.streams), "wanted_requests": options.requests,
        "reloads": soak.applied, "wanted_reloads": options.reloads, "refused": soak.refused,
        "kills": dict(soak.kills.kinds),
        "came": dict(Counter(f"{s.kind} {s.status} {s.code}".strip() for s in soak.streams)),
        "addresses": len(addresses.all), "quota": addresses.quota,
        "rate_refused": sum(one.refused for one in addresses.all),
        "rate_expected": sum(one.expected for one in addresses.all),
        "most_active_told": max(sample.active for sample in samples),
        "most_active_seen": most_at_once(soak.streams),
        "unready": sorted(
            {f"{s.path} {s.status}: {s.text.strip()}" for s in samples if s.status != 200}
        ),
        "health_p50": median(took), "health_p99": quantile(took, 0.99), "health_max": max(took),
        "lulls": [lull.told(began) for lull in soak.lulls],
        "slope": slope(soak.lulls), "alive": alive, "misses": soak.misses,
    }  # fmt: skip


def most_at_once(streams: list[Stream]) -> int:
    """Answers under way at one time, for certain: from a first record to the middle one.

    What a client reads late began earlier, and may have given its slot back already at its end.
    """
    steps: list[tuple[float, int]] = []
    for stream in streams:
        if stream.status == 200 and len(stream.records) > 2:
            first, middle = stream.records[0][0], stream.records[len(stream.records) // 2][0]
            steps += [(first, 1), (middle, -1)]
    most = now = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def slope(lulls: list[Lull]) -> float:
    """MB an hour of the daemon's memory, after the time in which it warms up."""
    warm = lulls[int(len(lulls) * _WARM_UP) :]
    if len(warm) < 2:
        return 0.0
    hours = [lull.at / 3600 for lull in warm]
    return linear_regression(hours, [lull.residue.rss / 1e6 for lull in warm]).slope


def problems(found: Json) -> list[str]:
    wrong = [*found["misses"], *found["unready"]]
    for what, seen, wanted in (
        ("requests", found["requests"], found["wanted_requests"]),
        ("reloads in force", found["reloads"], found["wanted_reloads"]),
        ("refusals by rate", found["rate_refused"], found["rate_expected"]),
    ):
        if seen != wanted:
            wrong.append(f"{seen} {what} instead of {wanted}")
    wrong += [
        f"{name} is {found[name]}, more than {MOST}"
        for name in ("most_active_told", "most_active_seen")
        if found[name] > MOST
    ]
    wrong += _held(found["lulls"])
    if found["judged"] and found["slope"] >= WANTED_SLOPE:
        wrong.append(f"memory grows by {found['slope']:.2f} MB an hour")
    if not found["alive"]:
        wrong.append("the daemon has ended")
    return wrong


def _held(lulls: list[Json]) -> list[str]:
    first, last = lulls[0], lulls[-1]
    wrong = []
    if last["descriptors"] > first["descriptors"]:
        wrong.append(f"{last['descriptors']} descriptors at last, {first['descriptors']} at first")
    for lull in lulls:
        at = f"at {lull['at']:.0f} s"
        if lull["zombies"] or lull["strays"] or lull["active"]:
            wrong.append(
                f"{at}: {lull['zombies']} zombies, {lull['strays']} strays, {lull['active']} active"
            )
        if not lull["workers"] == lull["folders"] == len(MODELS):
            wrong.append(f"{at}: {lull['workers']} workers, {lull['folders']} folders")
    return wrong


def page(found: Json) -> str:
    first, last = found["lulls"][0], found["lulls"][-1]
    ms = report.milliseconds
    rows = [
        ["requests", str(found["requests"]), str(found["wanted_requests"])],
        ["reloads in force", str(found["reloads"]), str(found["wanted_reloads"])],
        ["wrong edits refused", str(found["refused"]), ""],
        ["workers killed", ", ".join(f"{n} {k}" for k, n in found["kills"].items()), ""],
        ["addresses", str(found["addresses"]), ""],
        ["refused by rate (429)", str(found["rate_refused"]), str(found["rate_expected"])],
        ["most active, as /health told", str(found["most_active_told"]), f"at most {MOST}"],
        ["most under way, as clients saw", str(found["most_active_seen"]), f"at most {MOST}"],
        ["memory, first and last, MB", f"{first['rss'] / 1e6:.1f}, {last['rss'] / 1e6:.1f}", ""],
        ["memory, MB an hour", f"{found['slope']:.2f}", f"below {WANTED_SLOPE:g}"],
        ["descriptors, first and last", f"{first['descriptors']}, {last['descriptors']}",
         "the same"],
        ["threads, first and last", f"{first['threads']}, {last['threads']}", ""],
        ["zombies, most", str(max(lull["zombies"] for lull in found["lulls"])), "0"],
        ["/health, p50, p99, max, ms",
         ", ".join(ms(found[f"health_{q}"]) for q in ("p50", "p99", "max")), ""],
        ["what nothing explains", str(len(found["misses"])), "0"],
    ]  # fmt: skip
    words = [
        f"{TOGETHER} clients, an editor and a killer for {found['seconds'] / 60:.1f} minutes; seed"
        f" {found['seed']}. A client's address may ask {found['quota']} times, asks some times",
        f"more, and makes room for the next. The editor moves max_in_flight between {MOST - 2} and",
        f"{MOST}. Memory, descriptors and zombies are looked at in {len(found['lulls'])} lulls,",
        "with both models loaded.",
    ]
    came = [[what, str(count)] for what, count in sorted(found["came"].items())]
    return report.page(
        "Soak", found, words, table.grid(["what", "seen", "wanted"], rows),
        table.grid(["what came of requests", "times"], came),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "soak", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--reloads", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--quota", type=int, default=20, help="requests of one address, in all")
    parser.add_argument("--lulls", type=int, default=60, help="in which memory is looked at")
    parser.add_argument("--seed", type=int, default=0)
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.minutes, options.requests, options.reloads = 0.2, 60, 60
        options.kills, options.lulls, options.quota = 3, 2, 5
    return options


if __name__ == "__main__":
    raise SystemExit(main())
