"""A random walk over a whole daemon: what clients, operators and bad luck do, all at once.

Each answer must be the one that is known, or end with an error that something explains; at rest
nothing may be left. The same seed draws the same deeds; when they happen is the machine's affair.

python benchmarks/walk.py [--seed 0] [--minutes 5] [--short] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import report, table
from benchmarks.servers import HERE
from benchmarks.soak import Gate
from benchmarks.throughput import say
from benchmarks.walk_calls import MANNERS, Ask, Call, Client, begins, draw_asks
from benchmarks.walk_models import (
    ADAPTED,
    DRAFTED,
    DRAFTER,
    ENCODER,
    HYBRID,
    MOVING,
    PLAIN,
    QUANTISED,
    VARIANTS,
)  # fmt: skip
from benchmarks.workers import Residue, children
from mlxd.cli.admin import Refused
from mlxd.cli.client import NoAnswer
from tests.support.daemon import Daemon, daemon, write_whole

Json = dict[str, Any]
NICK = "nick"
"""Another name of the plain one, which edits take away."""
ASKED = {
    PLAIN: True, HYBRID: True, DRAFTED: True, ADAPTED: True, QUANTISED: True, MOVING: False,
}  # fmt: skip
"""Models, and whether they are given tools."""
CLIENTS = 6
ROUNDING = 0.005
"""Of a log-probability."""
_HOT, _HOT_SECONDS = 0.7, 15.0
"""The share of requests that are for one model, and for how long it is that one."""
_TOGETHER = 0.3
"""The share of deeds that another one follows at once."""
_IDLE_THREADS = 20
"""Each kind of work keeps up to two for the next time."""
_SHOWS = 30.0
"""Seconds for which a deed explains what becomes of requests."""
_VAGUE = frozenset(
    ("cut", "unreachable", "silent", "api_error", "overloaded_error", "server_error")
)
"""Not mlxd's words: nothing says how the call is counted. The last three are its APIs'."""
_ALWAYS = frozenset(("overloaded", "queue_full", "queue_timeout", "models_busy", "shed",
                     "overloaded_error"))  # fmt: skip
_OF = {
    "kill": frozenset(
        ("worker_crashed", "worker_stalled", "model_load_failed", "breaker_open",
         "request_quarantined", "model_quarantined", "deadline_exceeded")
    ),
    "freeze": frozenset(("worker_crashed", "worker_stalled", "deadline_exceeded", "silent",
                         "request_timeout", "breaker_open", "model_load_failed", "cut")),
    "moving": frozenset(("model_not_found", "model_load_failed", "model_quarantined",
                         "breaker_open", "resume_expired", "worker_crashed")),
    "memory": frozenset(("insufficient_memory",)),
    "rate": frozenset(("rate_limited",)),
    "clients": frozenset(("tenant_busy", "unauthorized", "too_many_guesses", "resume_expired")),
    "resume": frozenset(("resume_expired",)),
    "models": frozenset(("resume_expired",)),
    "names": frozenset(("model_not_found", "resume_expired")),
    "down": frozenset(("cut", "unreachable", "draining", "resume_expired", "worker_crashed",
                       "worker_stalled", "starts_held", "overloaded")),
}  # fmt: skip
"""What each kind of deed explains."""
_LIMITS = (
    "concurrency: {max_in_flight: 4, max_waiting: 8}\nrate_limit: []\n",
    "concurrency: {max_in_flight: 1, max_waiting: 20}\nrate_limit: []\n",
    "concurrency: {max_in_flight: 8, max_waiting: 0}\nrate_limit: []\n",
    "concurrency: {max_in_flight: 8, max_waiting: 8, per_model: {plain: 1}}\nrate_limit: []\n",
    "concurrency: {max_in_flight: 4, max_waiting: 8}\n"
    "rate_limit: [{name: few, requests: 5, window: 2s}]\n",
    "concurrency: {max_in_flight: 4, max_waiting: 8}\nrate_limit: []\nadaptive: {enabled: true}\n",
)
_MEMORY = (
    "prefix_cache: {memory: auto, disk: 64MiB}\n",
    "prefix_cache: {memory: off, disk: off}\n",
    "prefix_cache: {memory: 1MiB, disk: 1MiB}\n",
)
_EVICTION = "eviction: {protect_recent: 0s, min_residency: 0s}\n"
_CLIENTS = (
    "tenants: {}\n",
    "tenants: {walker: {max_in_flight: 1}}\n",
    "tenants: {walker: {weight: 5, max_priority: low}}\n",
    "auth: {required: true}\n",
)
_WORKER = "backoff: {base: 100ms, max: 100ms}, budget: [{max: 1000, per: 300s}]"
_SUPERVISION = (
    f"worker: {{spares: 0, {_WORKER}}}\nreplay: {{attempts: 3}}\nquarantine: {{kills: 10}}\n",
    f"worker: {{spares: 1, {_WORKER}}}\nreplay: {{attempts: 3}}\nquarantine: {{kills: 10}}\n",
    f"worker: {{spares: 0, {_WORKER}}}\nreplay: {{attempts: 1}}\nquarantine: {{kills: 10}}\n",
)
_TIMEOUTS = (
    "inter_token_stall: 3s\nworker_cancel_ack: 1s\nfirst_token: 20s\nmodel_load: 90s\nqueue: 20s\n"
)
_SERVER = (
    "drain: {grace: 3s, not_ready_delay: 0s}\nresume: {window: 60s}\n",
    "drain: {grace: 3s, not_ready_delay: 0s}\nresume: {window: 0s}\n",
    "drain: {grace: 3s, not_ready_delay: 0s}\nresume: {window: 60s, max_count: 3}\n",
    "drain: {grace: 3s, not_ready_delay: 0s}\nresume: {ids: asked, attach: always}\n",
    "drain: {grace: 3s, not_ready_delay: 0s}\nresume: {max_bytes: 16KiB, attach: off}\n",
)
_WRONG = (
    ("limits", "concurrency: {max_in_flight: none}\n"),
    ("memory", "prefix_cache: {memory: much\n"),
    ("models", "dirs: 7\n"),
    ("clients", "tenants: {walker: {color: blue}}\n"),
)
_RECORDS = re.compile(r"^(mlxd_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass
class Deed:
    """What the walk did, and explains until some time after it was undone."""

    kind: str
    words: str
    began: float = field(default_factory=time.monotonic)
    ended: float = float("inf")


@dataclass
class Tally:
    """What clients saw since the daemon that runs now has started."""

    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By what was wanted, and by the code."""
    loose: int = 0
    """Exchanges of which the client does not know how they ended."""
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)
    """What was asked before that was another daemon's, however late its client has read it."""


class Walk:
    """A daemon, everybody around it, and what went wrong."""

    def __init__(self, options: argparse.Namespace, running: Daemon, scratch: Path) -> None:
        self.options = options
        self.running = running
        self.scratch = scratch
        self.chance = random.Random(options.seed)
        self.asks: list[Ask] = []
        self.known: dict[Ask, list[Json]] = {}
        self.deeds: list[Deed] = []
        self.calls: list[Call] = []
        self.clear: list[Call] = []
        """Since the last rest, those of which the client knows how they ended."""
        self.misses: list[str] = []
        self.tally = Tally()
        self.rests = 0
        self.key = ""
        self._lock = threading.Lock()
        self._gate = Gate()
        self._over = threading.Event()
        self._down = threading.Event()
        self._first: Residue | None = None
        self._charged: float | None = None
        """Tokens that the day's use had before this daemon started."""
        self._slowest = 0.0
        self._log_read = 0

    # -- what is known beforehand

    def learn(self) -> None:
        """Ask everything once, undisturbed; of the model that moves, in both its forms."""
        self.asks = draw_asks(ASKED | {NICK: True}, ENCODER, self.options.asks, self.options.seed)
        client = Client(self.running.port, "first", self.chance)
        for variant in VARIANTS:
            if variant != VARIANTS[0]:
                self._change(variant)
            for ask in self.asks:
                if ask.model != MOVING and ask in self.known:
                    continue
                call = client.make(Call(ask, "plain", stream=False, key=""))
                if call.answer is None:
                    raise ValueError(f"undisturbed: {_words(call)}")
                self.known.setdefault(ask, []).append(call.answer)
                self._count(call)
        say(f"{len(self.known)} answers are known")

    def _change(self, variant: str) -> None:
        """Place it, and wait until the daemon has seen it; what is in memory is the one before."""
        before = self._digest()
        self._place(variant)
        deadline = time.monotonic() + 30
        while self._digest() in (before, None):
            if time.monotonic() > deadline:
                raise ValueError("undisturbed: another folder is not seen")
            time.sleep(0.2)
        self.running.http.post("/api/generate", json={"model": MOVING, "keep_alive": 0})

    def _digest(self) -> str | None:
        told = self.running.http.get(f"/api/models/{MOVING}").json()
        return str(told["digest"]) if told.get("digest") else None

    def _place(self, variant: str) -> None:
        self._put(MOVING, self.scratch / "variants" / variant)

    def _put(self, name: str, source: Path) -> None:
        """A copy of a folder in place of a model's."""
        new = self.scratch / "new"
        shutil.copytree(source, new)
        self._remove(name)
        new.rename(self.scratch / "models" / name)

    def _remove(self, name: str) -> None:
        there = self.scratch / "models" / name
        if there.exists():
            gone = self.scratch / "gone"
            there.rename(gone)
            shutil.rmtree(gone)

    # -- the walk

    def run(self) -> None:
        self.key = self._make_key()
        self._reset()
        self._rest("before")
        threads = [
            threading.Thread(target=self._guarded, args=(work, n), daemon=True)
            for n, work in enumerate([self._ask] * CLIENTS + [self._look, self._poll])
        ]
        for thread in threads:
            thread.start()
        with self._ended(threads):
            self._legs()

    @contextmanager
    def _ended(self, threads: list[threading.Thread]) -> Iterator[None]:
        """Nobody asks a daemon that is ended because the walk is over, or broken."""
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(120)

    def _legs(self) -> None:
        began, legs = time.monotonic(), 0
        while time.monotonic() - began < self.options.minutes * 60:
            legs += 1
            until = time.monotonic() + self.options.leg
            while time.monotonic() < until:
                time.sleep(self.chance.uniform(0.05, 1.2))
                self._act()
            with self._gate.shut():
                self._reset()
                self._rest(f"rest {legs}")
            came = Counter(call.code or ("left" if call.left else "ok") for call in self.calls)
            say(f"{time.monotonic() - began:.0f} s: {dict(came)}, {len(self.misses)} misses")

    def miss(self, words: str) -> None:
        self.misses.append(words)
        say(f"MISS at {time.strftime('%H:%M:%S')} {words}")

    def _guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            self.miss(f"the walk itself: {error!r}")
            raise

    # -- clients

    def _ask(self, number: int) -> None:
        chance = random.Random(f"{self.options.seed}/{number}")
        client = Client(self.running.port, str(number), chance)
        while not self._over.is_set():
            with self._gate.acting():
                self._ask_once(client, chance)
            time.sleep(chance.uniform(0.0, 0.2))

    def _ask_once(self, client: Client, chance: random.Random) -> None:
        hot = sorted(ASKED)[int(time.monotonic() / _HOT_SECONDS) % len(ASKED)]
        ask = chance.choice(self.asks)
        if ask.model != hot and chance.random() < _HOT:
            ask = chance.choice([one for one in self.asks if one.model == hot])
        stream = ask.streams and chance.random() < 0.7
        manner = chance.choices(MANNERS, (10, 3, 2, 2, 4, 3))[0]
        if manner == "resume" and not (stream and ask.path.startswith("/v1/")):
            manner = "plain"
        call = Call(ask, manner, stream, chance.choice((self.key, "")))
        client.make(call)
        with self._lock:
            self.calls.append(call)
            self._count(call)
        if wrong := self._misfit(call):
            self.miss(wrong)
        if call.code:
            time.sleep(0.3)

    def _count(self, call: Call) -> None:
        want = "prompt" if call.ask.path.endswith("tokens") else "answer"
        if "embed" in call.ask.path:
            want = "embedding"
        own = call.exchanges == 1 and call.began >= self.tally.since
        clear = own and not call.left and call.code not in _VAGUE
        if clear:
            self.tally.told[want, call.code or "ok"] += 1
            self.clear.append(call)
        else:
            self.tally.loose += call.exchanges
        if call.answer is not None and want == "answer" and own:
            self.tally.tokens += call.answer["completion"] or 0

    def _misfit(self, call: Call) -> str:
        """Why this may not come; empty when it may."""
        known = self.known[call.ask]
        if call.answer is not None:
            if any(_same(call.answer, one) for one in known):
                return ""
            return f"another answer: {_words(call)}\n  {call.answer}\n  {known}"
        if call.partial is not None and not any(begins(call.partial, one) for one in known):
            return f"another text: {_words(call)}\n  {call.partial}\n  {known}"
        if call.left or self._explains(call):
            return ""
        return f"nothing explains {_words(call)}"

    def _explains(self, call: Call) -> bool:
        if call.code in _ALWAYS:
            return True
        if call.code in ("api_error", "server_error") and "internal" not in call.error:
            return True
        deeds = [d for d in list(self.deeds) if d.began < call.ended]
        deeds = [d for d in deeds if d.ended + _SHOWS > call.began]
        return any(call.code in _OF.get(deed.kind, ()) for deed in deeds)

    def _look(self, number: int) -> None:
        """Whoever reads everything, all the time."""
        chance = random.Random(f"{self.options.seed}/{number}")
        paths = (
            "/health", "/metrics", "/api/tags", "/api/ps", "/v1/models", "/queue/stats",
            "/ui/state", f"/api/models/{MOVING}", "/api/events?since=0", "/",
        )  # fmt: skip
        admin = (
            "/admin/requests?n=50", "/admin/usage", "/admin/models", "/admin/cache", "/admin/ps",
            "/admin/crashes", "/admin/policy/effective", "/admin/policy/history",
        )  # fmt: skip
        while not self._over.is_set():
            with self._gate.acting():
                if chance.random() < 0.4:
                    self._look_inside(chance.choice(admin))
                else:
                    self._look_at(chance.choice(paths))
            time.sleep(chance.uniform(0.05, 0.5))

    def _look_at(self, path: str) -> None:
        try:
            headers = {"Accept": "application/json"}
            answer = httpx.get(self.running.url + path, headers=headers, timeout=30)
        except httpx.TransportError as error:
            if not self._lately("down", "freeze"):
                self.miss(f"{path}: {error!r}")
            return
        fine = answer.status_code < 400 or answer.status_code in (401, 404, 503)
        if not fine:
            self.miss(f"{path}: {answer.status_code} {answer.text[:300]}")

    def _look_inside(self, path: str) -> None:
        try:
            self.running.admin.get(path)
        except (NoAnswer, Refused) as error:
            if not self._lately("down", "freeze"):
                self.miss(f"{path}: {error!r}")

    def _lately(self, *kinds: str) -> bool:
        now = time.monotonic()
        return any(d.kind in kinds and d.ended + _SHOWS > now for d in list(self.deeds))

    def _poll(self, _number: int) -> None:
        """Liveness, each quarter of a second."""
        while not self._over.wait(0.25):
            if self._down.is_set():
                continue
            began = time.monotonic()
            try:
                status = httpx.get(f"{self.running.url}/livez", timeout=10).status_code
            except httpx.TransportError as error:
                if not self._lately("down", "freeze"):
                    self.miss(f"/livez: {error!r}")
                continue
            took = time.monotonic() - began
            if self._lately("freeze", "down"):
                continue
            self._slowest = max(self._slowest, took)
            if status != 200 or took > self.options.live_within:
                self.miss(f"/livez: {status} after {took:.2f} s")

    # -- deeds

    def _act(self) -> None:
        deeds: list[tuple[int, Callable[[], None]]] = [
            (6, self._kill), (2, self._freeze_worker), (1, self._freeze_daemon),
            (1, self._freeze_both), (2, self._change_drafter), (2, self._lose_model),
            (6, self._edit), (2, self._edit_wrongly), (2, self._edit_and_undo),
            (2, self._roll_back), (1, self._lose_policies),
            (4, self._move), (4, self._manage), (3, self._ask_admin), (1, self._restart),
        ]  # fmt: skip
        count = 2 if self.chance.random() < _TOGETHER else 1
        weights = [weight for weight, _ in deeds]
        for deed in self.chance.choices([deed for _, deed in deeds], weights, k=count):
            self._do(deed)

    def _do(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except (httpx.TransportError, NoAnswer, Refused) as error:
            if not self._lately("down", "freeze"):
                self.miss(f"{deed.__name__}: {error!r}")

    @contextmanager
    def _doing(self, kind: str, words: str) -> Iterator[None]:
        deed = Deed(kind, words)
        self.deeds.append(deed)
        if self.options.verbose:
            say(f"  {kind}: {words}")
        try:
            yield
        finally:
            deed.ended = time.monotonic()

    def _worker(self) -> int | None:
        pids = sorted(children(self.running.pid))
        return self.chance.choice(pids) if pids else None

    def _kill(self) -> None:
        pid = self._worker()
        number = self.chance.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1))
        if pid is not None:
            with self._doing("kill", f"{number.name} to {pid}"), _gone_is_fine():
                os.kill(pid, number)

    def _freeze_worker(self) -> None:
        pid = self._worker()
        seconds = self.chance.choice((0.3, 1.0, 5.0))
        if pid is not None:
            with self._doing("kill", f"SIGSTOP to {pid} for {seconds} s"), _gone_is_fine():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(seconds)
                os.kill(pid, signal.SIGCONT)

    def _freeze_daemon(self) -> None:
        with self._doing("freeze", "the daemon"):
            os.kill(self.running.pid, signal.SIGSTOP)
            time.sleep(self.chance.choice((0.2, 1.0, 4.0)))
            os.kill(self.running.pid, signal.SIGCONT)

    def _freeze_both(self) -> None:
        """Whoever goes on first finds the other one silent."""
        pids = [self.running.pid, *children(self.running.pid)]
        with self._doing("freeze", "the daemon and its workers"):
            for pid in pids:
                with _gone_is_fine():
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(self.chance.choice((0.2, 4.0)))
            for pid in self.chance.sample(pids, len(pids)):
                with _gone_is_fine():
                    os.kill(pid, signal.SIGCONT)
                time.sleep(self.chance.choice((0.0, 0.3)))

    def _edit(self) -> None:
        kind, text, explained = self._draw_edit()
        with self._doing(explained, f"{kind}: {text!r}"):
            self.running.edit(kind, text)
            if self.chance.random() < 0.5:
                self._reload()
        self.deeds.append(Deed(explained, "and for as long as it holds"))

    def _draw_edit(self) -> tuple[str, str, str]:
        match self.chance.randrange(7):
            case 0:
                return "limits", self.chance.choice(_LIMITS), "rate"
            case 1:
                return "memory", self.chance.choice(_MEMORY) + _EVICTION, "memory"
            case 2:
                return "clients", self.chance.choice(_CLIENTS), "clients"
            case 3:
                return "supervision", self.chance.choice(_SUPERVISION), "supervision"
            case 4:
                return "server", self.chance.choice(_SERVER), "resume"
            case 5:
                return "models", models_policy(self.scratch, 3, nick=False), "names"
            case _:
                return "models", self._models(self.chance.choice((1, 2, 3, 9))), "models"

    def _models(self, most: int) -> str:
        ttl = self.chance.choice(("0s", "1s", "never"))
        return models_policy(self.scratch, most, ttl, draft=self.chance.random() < 0.5)

    def _reload(self) -> None:
        outcome = self.running.reload()
        if outcome["result"] == "refused":
            self.miss(f"a reload is refused: {outcome}")

    def _edit_wrongly(self) -> None:
        kind, text = self.chance.choice(_WRONG)
        file = self.running.policies / f"{kind}.yaml"
        good = file.read_text()
        with self._doing("wrong", f"{kind}: {text!r}"):
            self.running.edit(kind, text)
            time.sleep(self.chance.choice((0.0, 0.3, 1.0)))
            outcome = self.running.reload()
            file.write_text(good)
            if outcome["result"] != "refused":
                self.miss(f"a wrong edit of {kind}: {outcome}")

    def _edit_and_undo(self) -> None:
        kind, text, explained = self._draw_edit()
        file = self.running.policies / f"{kind}.yaml"
        good = file.read_text()
        with self._doing(explained, f"{kind}: {text!r}, and back"):
            self.running.edit(kind, text)
            time.sleep(self.chance.choice((0.0, 0.05, 0.2, 1.0)))
            write_whole(file, good)

    def _lose_policies(self) -> None:
        away = self.running.policies.with_name("away")
        with self._doing("wrong", "the policy folder is away"):
            self.running.policies.rename(away)
            time.sleep(self.chance.choice((0.0, 0.5, 4.0)))
            away.rename(self.running.policies)

    def _roll_back(self) -> None:
        kept = self.running.admin.get("/admin/policy/history")["history"]
        kept = [one["generation"] for one in kept]
        if not kept:
            return
        kinds = ("clients", "rate", "memory", "resume", "models", "names")
        with contextlib.ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(self._doing(kind, "a rollback"))
            try:
                number = self.chance.choice(kept)
                self.running.admin.post(f"/admin/policy/rollback?gen={number}&force=1")
            except Refused as error:
                if error.status not in (409, 400):
                    raise
        self.deeds += [Deed(kind, "since a rollback") for kind in kinds]

    def _move(self) -> None:
        with self._doing("moving", "its folder"):
            if self.chance.random() < 0.3:
                self._remove(MOVING)
                time.sleep(self.chance.choice((0.0, 0.5, 2.0)))
            self._place(self.chance.choice(VARIANTS))

    def _change_drafter(self) -> None:
        """Answers stay the same, whoever drafts for them."""
        with self._doing("drafter", "other weights"):
            other = self.chance.choice((DRAFTER, PLAIN))
            self._put(DRAFTER, self.scratch / "originals" / other)

    def _lose_model(self) -> None:
        """Its folder is away for a moment, and comes back as it was."""
        name = self.chance.choice([name for name in ASKED if name != MOVING])
        there, away = self.scratch / "models" / name, self.scratch / "away"
        with self._doing("moving", f"the folder of {name} is away"):
            there.rename(away)
            time.sleep(self.chance.choice((0.0, 0.5, 3.0)))
            away.rename(there)

    def _manage(self) -> None:
        """As clients manage models: what is told must be no fault of mlxd's."""
        name = self.chance.choice(list(ASKED))
        what = self.chance.choice(("unload", "load", "copy", "create", "delete", "keep_alive"))
        path, body = {
            "unload": ("/api/generate", {"model": name, "keep_alive": 0}),
            "load": ("/api/generate", {"model": name}),
            "keep_alive": ("/api/chat", {"model": name, "messages": [], "keep_alive": "1s"}),
            "copy": ("/api/copy", {"source": name, "destination": "copied"}),
            "create": ("/api/create", {"model": "made", "from": name, "system": "be brief"}),
            "delete": ("/api/delete", {"model": self.chance.choice(("copied", "made"))}),
        }[what]
        method = "DELETE" if what == "delete" else "POST"
        with self._doing("manage", f"{what} {name}"):
            headers = {"Authorization": f"Bearer {self.key}"}
            answer = httpx.request(
                method, self.running.url + path, json=body, headers=headers, timeout=60
            )
        if what in ("unload", "load", "keep_alive"):
            self.tally.loose += 1
        if answer.status_code >= 500 and answer.status_code != 503:
            self.miss(f"{what} {name}: {answer.status_code} {answer.text[:300]}")

    def _ask_admin(self) -> None:
        admin = self.running.admin
        name = self.chance.choice(list(ASKED))
        what = self.chance.choice(("unload", "load", "reset", "cache", "plan", "keys"))
        with self._doing("models", f"admin {what} {name}"):
            try:
                match what:
                    case "unload" | "load":
                        self.tally.loose += 1
                        admin.post(f"/admin/{what}", {"model": name})
                    case "reset":
                        admin.post(f"/admin/models/reset?name={name}")
                    case "cache":
                        admin.delete("/admin/cache?disk=1")
                    case "plan":
                        admin.post("/admin/plan", {"model": name, "context": 100})
                    case _:
                        admin.post("/admin/keys/reload")
            except Refused as error:
                if error.status >= 500 and error.status != 503:
                    self.miss(f"admin {what} {name}: {error!r}")

    def _restart(self) -> None:
        number = self.chance.choice((signal.SIGTERM, signal.SIGKILL))
        with self._doing("down", f"restart by {number.name}"), self._paused():
            workers = list(children(self.running.pid))
            status = self.running.stop(number)
            if number is signal.SIGTERM and status != 0:
                self.miss(f"SIGTERM ended it with {status}")
            late = [pid for pid in workers if not _ends(pid, 3.0)]
            if late:
                self.miss(f"workers outlive their daemon after {number.name}: {late}")
            self._start()
        self._first = None

    @contextmanager
    def _paused(self) -> Iterator[None]:
        self._down.set()
        try:
            yield
        finally:
            self._down.clear()

    def _start(self) -> None:
        with self._lock:
            self.tally = Tally(loose=CLIENTS * 2)
            self.clear, self._charged = [], None
        ended = self.running.process
        assert isinstance(ended, subprocess.Popen)
        with self.running.log.open("ab") as sink:
            self.running.process = subprocess.Popen(
                ended.args, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.running.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                if self.running.http.get("/livez").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"it does not start again:\n{self.running.log_text()[-2000:]}")

    # -- at rest

    def _reset(self) -> None:
        """Policies as at first, nothing copied or made, and each model has answered."""
        for kind, text in policies(self.scratch).items():
            self.running.edit(kind, text)
        self._reload()
        self._place(VARIANTS[0])
        self._put(DRAFTER, self.scratch / "originals" / DRAFTER)
        headers = {"Authorization": f"Bearer {self.key}"}
        for name in ("copied", "made"):
            httpx.request(
                "DELETE", f"{self.running.url}/api/delete", json={"model": name}, headers=headers
            )
        for name in [*ASKED, DRAFTER]:
            self.running.admin.post(f"/admin/models/reset?name={name}")
        self.deeds = [d for d in self.deeds if d.ended < float("inf")]
        client = Client(self.running.port, "rest", self.chance)
        for name in [*ASKED, ENCODER]:
            self._serves(client, next((ask for ask in self.asks if ask.model == name), None))

    def _serves(self, client: Client, ask: Ask | None) -> None:
        if ask is None:
            return
        deadline = time.monotonic() + 40
        while True:
            call = client.make(Call(ask, "plain", stream=False, key=self.key))
            self._count(call)
            if call.answer is not None:
                if wrong := self._misfit(call):
                    self.miss(f"at rest: {wrong}")
                return
            if time.monotonic() > deadline:
                self.miss(f"at rest: {_words(call)}")
                return
            time.sleep(0.5)

    def _rest(self, name: str) -> None:
        self.rests += 1
        running = self.running
        if running.process.poll() is not None:
            raise AssertionError(f"{name}: the daemon is gone: {running.process.returncode}")
        wrong: list[str] = []
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            wrong = self._restless()
            if not wrong:
                break
            time.sleep(0.3)
        for words in [*wrong, *self._miscounted(), *self._mistold(), *self._logged()]:
            self.miss(f"{name}: {words}")

    def _restless(self) -> list[str]:
        """What is not as it was at first."""
        running = self.running
        health = running.admin.get("/admin/health")
        queue = running.http.get("/queue/stats").json()
        residue = Residue.of(running.pid, running.state)
        wrong = [
            f"{key} is {health[key]}"
            for key in ("active_requests", "active_model_requests", "quarantined_requests")
            if health[key] and any(_values(health[key]))
        ]
        wrong += [f"{one['name']} is used" for one in health["cached_models"]
                  if one["active_requests"]]  # fmt: skip
        wrong += [f"the queue has {queue['queue_size']}"] if queue["queue_size"] else []
        if health["status"] != "healthy" and not _only_memory(health):
            wrong.append(f"health is {health['status']}: {health['warnings']}")
        wrong += [
            f"a story has not ended: {story['id']} {story['path']}"
            for story in running.admin.get("/admin/requests", n="200")["requests"]
            if story["ended"] is None
        ]
        if residue.zombies or residue.strays:
            wrong.append(f"{residue.zombies} zombies, {residue.strays} strays")
        engines = residue.workers + len(health["spares"])
        if residue.folders != engines:
            wrong.append(f"{residue.folders} folders of {engines} engines")
        wrong += [
            f"left in the state folder: {file}"
            for file in running.state.rglob(".*")
            if re.fullmatch(r"\..+\.\d+-\d+", file.name)
        ]
        return wrong + self._grown(residue)

    def _grown(self, residue: Residue) -> list[str]:
        if self._first is None:
            self._first = residue
            return []
        first = self._first
        more = residue.workers - first.workers
        wrong = []
        if residue.descriptors > first.descriptors + 6 * max(0, more) + 6:
            wrong.append(f"{residue.descriptors} descriptors, {first.descriptors} at first")
        if residue.threads > first.threads + _IDLE_THREADS + 2 * max(0, more):
            wrong.append(f"{residue.threads} threads, {first.threads} at first")
        if residue.rss > first.rss + 60e6:
            wrong.append(f"{residue.rss / 1e6:.0f} MB, {first.rss / 1e6:.0f} at first")
        return wrong

    def _miscounted(self) -> list[str]:
        """Metrics against what clients saw."""
        metrics = read_metrics(self.running.http.get("/metrics").text)
        tally, wrong = self.tally, []
        for (want, code), told in tally.told.items():
            counted = metrics.get(("mlxd_requests_total", f'want="{want}",code="{code}"'))
            counted = (
                counted
                if counted is not None
                else metrics.get(("mlxd_requests_total", f'code="{code}",want="{want}"'), 0.0)
            )
            if code in ("unauthorized", "too_many_guesses", "model_not_found", "forbidden"):
                continue
            if code == "draining":  # it was another process that counted
                continue
            if not told <= counted <= told + tally.loose:
                wrong.append(f"{counted:g} {want} {code} counted, {told} to {told + tally.loose}")
        tokens = sum(
            value for (name, labels), value in metrics.items()
            if name == "mlxd_tokens_total" and 'kind="completion"' in labels
        )  # fmt: skip
        if tokens < tally.tokens:
            wrong.append(f"{tokens:g} tokens counted, at least {tally.tokens} seen")
        if active := metrics["mlxd_requests_active", ""]:
            wrong.append(f"mlxd_requests_active is {active:g}")
        return wrong + self._mischarged(metrics)

    def _mischarged(self, metrics: dict[tuple[str, str], float]) -> list[str]:
        """The day's use against metrics, which begin anew with each daemon."""
        tenants = self.running.admin.get("/admin/usage")["tenants"]
        used = sum(tenant["tokens_today"] for tenant in tenants)
        taken = sum(v for (name, _), v in metrics.items() if name == "mlxd_tenant_tokens_total")
        if self._charged is None:
            self._charged = used - taken
        if used - taken == self._charged:
            return []
        return [f"{used - self._charged:g} tokens were charged, {taken:g} were taken"]

    def _mistold(self) -> list[str]:
        """Stories against what clients saw."""
        told = self.running.admin.get("/admin/requests", n="500")["requests"]
        stories = {story["id"]: story for story in told}
        with self._lock:
            calls, self.clear = self.clear, []
        pairs = [(stories[call.id], call) for call in calls if call.id in stories]
        return [wrong for story, call in pairs if (wrong := _differs(story, call))][:5]

    def _logged(self) -> list[str]:
        text = self.running.log_text()
        new, self._log_read = text[self._log_read :], len(text)
        return [
            f"the log has {new[found.start() - 300 : found.end() + 1200]!r}"
            for found in re.finditer("Traceback|never awaited|never retrieved|internal_error", new)
        ][:3]

    def _make_key(self) -> str:
        made = subprocess.run(
            [sys.executable, "-m", "mlxd", "keys", "add", "walker", "--state",
             str(self.running.state), "--policies", str(self.running.policies)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return made.stdout.strip()


def _differs(story: Json, call: Call) -> str:
    """Where a story says something else than its client saw; of an answer that is gone on with, an
    earlier story tells a part.
    """
    if any(note["what"] == "resumed" for note in story["notes"]):
        return ""
    told = (story["code"], story["completion_tokens"])
    seen = (call.code, told[1])
    if call.answer is not None and "choices" in call.answer:
        seen = (call.code, call.answer["completion"])
    return f"a story tells {told}, its client {seen}: {_words(call)}" if told != seen else ""


def _values(told: Any) -> list[Any]:
    return list(told.values()) if isinstance(told, dict) else [told]


def _only_memory(health: Json) -> bool:
    """The machine's memory is everybody's."""
    return health["memory"] is not None and health["memory"]["level"] != "normal"


def _same(answer: Json, known: Json) -> bool:
    if "choices" not in known:
        return bool(answer == known)
    told, wanted = answer["choices"], known["choices"]
    return (
        told.keys() == wanted.keys()
        and all(_alike(told[index], wanted[index]) for index in wanted)
        and answer["completion"] == known["completion"]
        and answer["prompt"] == known["prompt"]
    )


def _alike(choice: Json, wanted: Json) -> bool:
    """The same, but for what rounding makes of log-probabilities: prompts are read at once, and
    what an answer goes on from after a crash is, too.
    """
    odds, others = choice["odds"], wanted["odds"]
    return (
        choice | {"odds": ()} == wanted | {"odds": ()}
        and [token for token, _ in odds] == [token for token, _ in others]
        and all(abs(a - b) < ROUNDING for (_, a), (_, b) in zip(odds, others, strict=True))
    )


def _words(call: Call) -> str:
    took = call.ended - call.began
    return (
        f"{call.manner} {'stream' if call.stream else 'whole'} {call.id} {call.status}"
        f" {call.code} after {took:.1f} s: {call.error[:300]} of {str(call.ask)[:300]}"
    )


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    with contextlib.suppress(ProcessLookupError):
        yield


def _ends(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def read_metrics(text: str) -> dict[tuple[str, str], float]:
    return {(m[1], m[2] or ""): float(m[3]) for m in _RECORDS.finditer(text)}


def models_policy(
    scratch: Path, most: int, ttl: str = "never", *, nick: bool = True, draft: bool = True
) -> str:
    code = "trust_remote_code: true"
    drafter = f", draft: {DRAFTER}" if draft else ""
    return (
        f"dirs: [{scratch / 'models'}]\ndefaults: {{ttl: {ttl}}}\nmax_loaded: {most}\n"
        f"load: {{retry: {{max: 10, backoff: 100ms}}}}\n"
        f"models:\n"
        f"  {PLAIN}: {{{code}, aliases: [{NICK if nick else ''}]}}\n"
        f"  {HYBRID}: {{{code}}}\n  {DRAFTER}: {{{code}}}\n"
        f"  {DRAFTED}: {{{code}{drafter}}}\n"
        f"  {ADAPTED}: {{{code}, adapter: {scratch / 'adapter'}}}\n"
        f"  {QUANTISED}: {{{code}, kv_bits: 8}}\n"
        f"  {MOVING}: {{{code}}}\n"
    )


def policies(scratch: Path) -> dict[str, str]:
    return {
        "limits": _LIMITS[0], "memory": _MEMORY[0] + _EVICTION, "clients": _CLIENTS[0],
        "supervision": _SUPERVISION[0], "timeouts": _TIMEOUTS, "server": _SERVER[0],
        "models": models_policy(scratch, 3),
    }  # fmt: skip


def measure(options: argparse.Namespace, scratch: Path) -> Json:
    made = scratch if options.models is None else options.models
    if not (made / "models").exists():
        subprocess.run([sys.executable, str(HERE / "walk_models.py"), str(made)], check=True)
    if made != scratch:
        shutil.copytree(made, scratch, dirs_exist_ok=True)
    shutil.copytree(scratch / "models", scratch / "originals")
    folder = scratch / "daemon"
    folder.mkdir()
    began = time.monotonic()
    with daemon(folder, policies=policies(scratch), port=options.port) as running:
        walk = Walk(options, running, scratch)
        try:
            walk.learn()
            walk.run()
        finally:
            if options.log is not None:
                shutil.copy(running.log, options.log)
    return {
        "judged": not options.short, "seed": options.seed, "seconds": time.monotonic() - began,
        "calls": len(walk.calls), "rests": walk.rests, "live_max": walk._slowest,
        "came": dict(
            Counter(c.code or ("left" if c.left else "exact") for c in walk.calls).most_common()
        ),
        "manners": dict(Counter(c.manner for c in walk.calls)),
        "deeds": dict(Counter(deed.kind for deed in walk.deeds).most_common()),
        "misses": walk.misses,
    }  # fmt: skip


def problems(found: Json) -> list[str]:
    return list(found["misses"])


def page(found: Json) -> str:
    words = [
        f"{CLIENTS} clients for {found['seconds'] / 60:.1f} minutes; seed {found['seed']}."
        f" {found['calls']} calls, {found['rests']} rests."
    ]
    came = [[what, str(count)] for what, count in found["came"].items()]
    deeds = [[what, str(count)] for what, count in found["deeds"].items()]
    return report.page(
        "A random walk", found, words, table.grid(["what came of calls", "times"], came),
        table.grid(["deeds", "times"], deeds),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    return report.conduct(options, "walk", measure, problems, page)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asks", type=int, default=60, help="different requests")
    parser.add_argument("--leg", type=float, default=25.0, help="seconds between two rests")
    parser.add_argument("--live-within", type=float, default=1.0, help="seconds")
    parser.add_argument("--port", type=int)
    parser.add_argument("--models", type=Path, help="where models are made, or were")
    parser.add_argument("--log", type=Path, help="where the daemon's log is copied to")
    parser.add_argument("--verbose", action="store_true", help="tell each deed")
    report.add_options(parser)
    options = parser.parse_args(argv)
    if options.short:
        options.minutes, options.asks, options.leg = 0.1, 20, 5.0
    return options


if __name__ == "__main__":
    raise SystemExit(main())
