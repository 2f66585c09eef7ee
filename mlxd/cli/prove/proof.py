"""The proof, step by step: load, stream, kill, recover, unload."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlxd import __version__
from mlxd.cli.admin import Refused
from mlxd.cli.client import NoAnswer
from mlxd.cli.models.words import size
from mlxd.cli.prove.answer import Answer, ask
from mlxd.cli.prove.mac import Looks
from mlxd.cli.prove.step import Outcome, Steps, Verdict, failed, judged, not_here, passed
from mlxd.cli.prove.subject import CannotProve, Subject, eventually, gone
from mlxd.control.process_limit import resident_of
from mlxd.core.counts import form, plural

Json = dict[str, Any]

TOKENS = 192
_BEFORE_KILL = 8
"""Tokens that are there when the worker is killed."""
_TRIES = 3
"""Of what a busy machine may spoil: a small model is through with its answer before somebody looks
at it, or before its worker is killed. Then another answer is asked for.
"""
_TOLD_SECONDS = 5.0
_RECOVERY_SECONDS = 60.0
_LEAVE_SECONDS = 30.0
_ORPHAN_SECONDS = 5.0
_SURE_BYTES = 2**30
"""Of less, what other programs do meanwhile to the memory that is free says more."""
_WELL = ("healthy", "degraded")
"""`degraded`: all slots are taken."""
_ABOUT = ("worker_", "replay", "restart", "load", "breaker", "evict", "memory_", "pressure")
"""What is written down of the events: those about workers and memory, and no client's."""


@dataclass(slots=True)
class Seen:
    """What was measured on the way."""

    figures: dict[str, str] = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    stderr: str = ""
    """The last that the killed worker said."""


class Proof:
    """Of one daemon with one model."""

    def __init__(self, subject: Subject, model: Json, steps: Steps, looks: Looks) -> None:
        self.seen = Seen()
        self._subject = subject
        self._model: str = model["name"]
        self._tokens = min(TOKENS, (model["context"] or 2 * TOKENS) // 2)
        self._steps = steps
        self._looks = looks
        self._before: Json = {}
        self._since = 0
        self._was_loaded = False
        self._undisturbed = Answer()
        self._disturbed = Answer()
        self._killed = 0
        self._restarts = 0

    def run(self) -> None:
        """Until a step fails that the next ones need. What was not in memory is not afterwards."""
        try:
            for name, take, needed in self._all():
                if not self._took(name, take) and needed:
                    break
        finally:
            with contextlib.suppress(NoAnswer, Refused):
                self._leave()

    def _all(self) -> Iterator[tuple[str, Callable[[], Outcome], bool]]:
        """Each with whether the next ones need it."""
        model = self._model
        yield "the daemon answers", self._answers, True
        yield f"{model} is loaded", self._loads, True
        yield "an answer comes token by token", self._streams, True
        yield "a stream outlives the SIGKILL of its worker", self._survives, False
        yield "its tokens are those of the undisturbed answer", self._is_exact, False
        yield "health tells of the kill, and that it is over", self._recovers, False
        yield "memory comes back", self._gives_back, False
        if self._subject.own is not None:
            yield "workers end with a killed daemon", self._leaves_no_orphan, False

    def _took(self, name: str, take: Callable[[], Outcome]) -> bool:
        self._steps.begin(name)
        try:
            outcome = take()
        except (NoAnswer, Refused, CannotProve) as error:
            outcome = failed(str(error))
        self._steps.end(name, outcome)
        return outcome.verdict is not Verdict.FAILED

    def _answers(self) -> Outcome:
        health = self._subject.health()
        self._before = health
        self._since = self._subject.last_event()
        self._was_loaded = bool(self._subject.process(self._model))
        self._looks.before(health, loaded=self._was_loaded)
        words = f"mlxd {health['version']}, pid {health['pid']}, {health['status']}"
        if health["version"] != __version__:
            return failed(f"{words}; this is mlxd {__version__}: restart the daemon")
        return passed(words)

    def _loads(self) -> Outcome:
        begun = time.monotonic()
        self._subject.admin.wait("/admin/load", {"model": self._model})
        took = time.monotonic() - begun
        pid = self._subject.resident(self._model)
        held = resident_of(pid) or 0
        self._measured("load", f"{took:.2f} s")
        self._measured("resident", size(held))
        self._looks.loaded(pid, held, self._engine())
        where = "it was in memory" if self._was_loaded else f"in {took:.2f} s"
        return passed(f"{where}, {size(held)} resident, pid {pid}")

    def _engine(self) -> Json:
        """What its engine holds and may hold, in bytes."""
        models = self._subject.health()["cached_models"]
        found = (one["memory_bytes"] for one in models if one["name"] == self._model)
        return next(found, None) or {}

    def _streams(self) -> Outcome:
        looked = False

        def look(_: int) -> None:
            nonlocal looked
            if not looked:
                looked = True
                self._looks.streaming()

        ask(self._subject.admin.path, self._model, self._tokens, look)
        self._looks.streamed()
        flowed = any(self._flows() for _ in range(_TRIES))
        answer = self._undisturbed
        self._measured("first token", f"{1000 * answer.first:.0f} ms")
        self._measured("tokens a second", f"{answer.rate:.1f}")
        words = (
            f"{plural(len(answer.tokens), 'token')}, the first after {1000 * answer.first:.0f} ms,"
            f" then {answer.rate:.1f} a second"
        )
        if not flowed:
            return failed(f"they came together: {words}")
        return judged(words, true=len(answer.tokens) == self._tokens)

    def _flows(self) -> bool:
        """Whether the tokens of an answer that nothing disturbs come as they are made."""
        answer = self._undisturbed = self._ask(lambda _: None)
        decoded = float(self._subject.story(answer.id).get("decode_seconds") or 0.0)
        return answer.one_by_one(decoded)

    def _ask(self, watch: Callable[[int], None]) -> Answer:
        """Raises CannotProve when it is not whole."""
        answer = ask(self._subject.admin.path, self._model, self._tokens, watch)
        if not answer.whole:
            count = len(answer.tokens)
            why = answer.error or "it ended without a reason"
            raise CannotProve(f"the answer broke off after {plural(count, 'token')}: {why}")
        return answer

    def _survives(self) -> Outcome:
        for _ in range(_TRIES):
            since = self._subject.last_event()
            pid = self._kill_in_an_answer()
            down, replayed = self._told_of(pid, since)
            if not down:
                return failed(f"no event tells that worker {pid} is down")
            if replayed:
                words = f"pid {pid} was killed, and the answer went on after {self._pause():.2f} s"
                return passed(words, f"{down['message']}\n{replayed['message']}")
        return failed("the answer was over before its worker was: nothing is shown")

    def _kill_in_an_answer(self) -> int:
        """The process. Raises CannotProve."""
        self._subject.admin.wait("/admin/load", {"model": self._model})
        pid = self._subject.resident(self._model)
        if not self._subject.owns(pid):
            raise CannotProve(f"process {pid} is no worker of this daemon, and is let live")
        self._restarts = self._subject.worker(self._model).get("restarts", 0)

        def strike(count: int) -> None:
            if count >= _BEFORE_KILL and self._killed != pid:
                os.kill(pid, signal.SIGKILL)
                self._killed = pid

        try:
            answer = self._disturbed = self._ask(strike)
        except OSError as error:
            raise CannotProve(f"process {pid} cannot be killed: {error.strerror}") from error
        self._measure_pause(answer)
        return pid

    def _told_of(self, pid: int, since: int) -> tuple[Json, Json]:
        """The events that tell of the worker's end and of the replay: without one the answer was
        over before. Others may be replayed with it: where the story of our request is known, that
        tells.
        """
        down: Json = {}
        replayed: Json = {}

        def told() -> bool:
            nonlocal down, replayed
            for event in self._subject.events(since):
                data = event["data"]
                if event["type"] == "worker_down" and data.get("pid") == pid:
                    down = event
                elif event["type"] == "replay" and data.get("model") == self._model:
                    replayed = event
            return bool(down and replayed)

        eventually(told, _TOLD_SECONDS)
        ours = self._subject.story(self._disturbed.id).get("replays", 1)
        return down, replayed if ours else {}

    def _pause(self) -> float:
        """The longest of the disturbed answer."""
        arrivals = self._disturbed.arrivals
        return max((b - a for a, b in itertools.pairwise(arrivals)), default=0.0)

    def _measure_pause(self, answer: Answer) -> None:
        self._measured("pause of the killed answer", f"{self._pause():.2f} s")
        self._measured("tokens of the killed answer", str(len(answer.tokens)))

    def _is_exact(self) -> Outcome:
        mine, its = self._disturbed, self._undisturbed
        if not mine.whole:
            return not_here("there is no such answer")
        at = mine.differs_at(its)
        if at is None:
            return passed(f"all {len(its.tokens)}")
        words = f"another from token {at + 1} on, {len(mine.tokens)} of {len(its.tokens)}"
        if self._looks.on_gpu and at >= _BEFORE_KILL and len(mine.tokens) == len(its.tokens):
            why = "a GPU's last bits depend on what it computes together"
            return not_here(f"{words}: none is lost or said twice; {why}")
        return failed(words)

    def _recovers(self) -> Outcome:
        if not self._killed:
            return not_here("no worker was killed")
        last: Json = {}
        fine = {*_WELL, self._before["status"]}

        def well() -> bool:
            last.update({"reason": "there is no worker"}, **self._subject.worker(self._model))
            another = last.get("state") == "serving" and last["pid"] != self._killed
            return bool(another and self._subject.health()["status"] in fine)

        if not eventually(well, _RECOVERY_SECONDS):
            status = self._subject.health()["status"]
            state = last.get("state", "no worker")
            return failed(f"{status}, the worker: {state} {last['reason']}".rstrip())
        told = last["restarts"] > self._restarts
        words = f"restarts {last['restarts']}, pid {last['pid']}"
        return judged(words, true=told)

    def _gives_back(self) -> Outcome:
        process = self._subject.process(self._model)
        if process.get("running"):
            count = process["running"]
            use = form(count, "uses", "use")
            return not_here(f"{plural(count, 'request')} of others {use} the model")
        pid = process.get("pid")
        if pid is None:
            return not_here("the model is not in memory any more")
        held, before = resident_of(pid) or 0, self._available()
        self._subject.admin.post("/admin/unload", {"model": self._model})
        if not eventually(lambda: gone(pid), _LEAVE_SECONDS):
            return failed(f"worker {pid} is there after {_LEAVE_SECONDS:g} s")
        self._looks.unloaded()
        words = f"worker {pid} is gone with its {size(held)}"
        if held < _SURE_BYTES:
            return passed(f"{words}; less than 1 GiB is not looked for in what is available")
        back = eventually(lambda: self._available() - before >= held / 2, _LEAVE_SECONDS)
        grown = size(max(0, self._available() - before))
        return judged(f"{words}, {grown} more are available", true=back)

    def _available(self) -> int:
        """Bytes, as the daemon measures them. Raises CannotProve."""
        available = self._subject.health()["memory"]["available_gb"]
        if available is None:
            raise CannotProve("the daemon cannot read how much memory is available")
        return int(available * 2**30)

    def _leaves_no_orphan(self) -> Outcome:
        """The last one: it ends the daemon."""
        assert self._subject.own is not None
        self._collect_events()
        self._subject.admin.wait("/admin/load", {"model": self._model})
        pid = self._subject.resident(self._model)
        self._subject.own.kill()
        ended = eventually(lambda: gone(pid), _ORPHAN_SECONDS)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        return judged(f"worker {pid}, within {_ORPHAN_SECONDS:g} s", true=ended)

    def _leave(self) -> None:
        """As it was found. Raises NoAnswer, Refused."""
        if self._subject.own is not None and self._subject.own.process.poll() is not None:
            return
        self._collect_events()
        if self._before and not self._was_loaded:
            self._subject.admin.post("/admin/unload", {"model": self._model})
        elif self._was_loaded and not self._subject.process(self._model):
            self._subject.admin.wait("/admin/load", {"model": self._model})

    def _collect_events(self) -> None:
        self.seen.events = [
            event
            for event in self._subject.events(self._since)
            if event["type"].startswith(_ABOUT)
            and event["data"].get("model", self._model) == self._model
        ]
        for event in self.seen.events:
            if event["type"] == "worker_down" and event["data"].get("pid") == self._killed:
                self.seen.stderr = str(event["data"].get("stderr") or "")

    def _measured(self, what: str, figure: str) -> None:
        self.seen.figures[what] = figure
