"""The main thread: take commands, step, report. All of MLX happens here."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from mlxd.core.clock import stamp
from mlxd.core.counts import form, plural
from mlxd.core.events import FinishReason
from mlxd.core.traces import print_trace
from mlxd.ipc.messages import (
    Accepted,
    Budget,
    CacheAsk,
    CacheClear,
    Cancel,
    Cancelled,
    Echoed,
    Ended,
    Observed,
    Piece,
    PrefixRules,
    Refused,
    Reused,
    Shutdown,
    Trim,
    Tuning,
)
from mlxd.worker.allocator import Allocator, is_exhaustion
from mlxd.worker.budget import Ledger
from mlxd.worker.claim import Claim
from mlxd.worker.engine import Engine, Prefixes, Prompt, Reuse, Step, Token
from mlxd.worker.excess import Excess
from mlxd.worker.idle import Idle
from mlxd.worker.job import Command, Fetched, Inbox, Job, Progress
from mlxd.worker.link import Link
from mlxd.worker.making import Maker
from mlxd.worker.prefix.backing import Backing
from mlxd.worker.prefix.outline import message_at
from mlxd.worker.prefix.report import Cache
from mlxd.worker.readings import Readings, Reads
from mlxd.worker.refusal import Refusal
from mlxd.worker.reporter import SIGN_OF_LIFE_SECONDS, Reporter
from mlxd.worker.running import Running
from mlxd.worker.sampling import Guard
from mlxd.worker.tuning import Tuned
from mlxd.worker.turns import Turns
from mlxd.worker.warming import Warming

CHECK_EVERY = 8
"""Steps between two comparisons of what is held with what is allowed."""
LAST_SECONDS = 0.8
"""Of the end, for what is to be on disk; the daemon waits a second before it is less polite."""
SOUND_STEPS = 64
"""After so many, an engine that fails again is made anew again; sooner, the worker ends."""


class Loop:
    """Runs the engine over all requests until told to shut down.

    A prompt that is read by itself (readings.py) has one chunk read after each step.
    An engine that fails in a step is made anew, and all its sequences go on where they were.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        link: Link,
        inbox: Inbox,
        progress: Progress,
        *,
        maker: Maker,
        reader: Reads,
        ledger: Ledger,
        allocator: Allocator,
        turns: Turns,
        tuned: Tuned,
        prefixes: Prefixes | None,
        cache: Cache,
        backing: Backing | None,
        warming: Warming,
    ) -> None:
        """`tuned` and `prefixes` are those of the engines that are made."""
        self._make_engine = make_engine
        self._engine = make_engine()
        self._link = link
        self._inbox = inbox
        self._progress = progress
        self._maker = maker
        self._readings = Readings(reader)
        self._ledger = ledger
        self._allocator = allocator
        self._reporter = Reporter(link, progress, allocator)
        self._idle = Idle(allocator, self._reporter, backing)
        self._excess = Excess(ledger, allocator, prefixes)
        self._turns = turns
        self._tuned = tuned
        self._prefixes = prefixes
        self._cache = cache
        self._backing = backing
        self._warming = warming
        self._kept = 0
        """What was kept of earlier prompts when the present busy time began."""
        self._waiting: dict[int, Job] = {}
        """Those that the ledger has not admitted."""
        self._running: dict[int, Running] = {}
        self._uids: dict[int, int] = {}
        self._busy = False
        self._broken = False
        self._sound_from = 0
        """The step from which on a failure is mended."""

    def run(self) -> None:
        """Returns on `Shutdown`. Want of memory escapes this, and whatever fails too often."""
        while True:
            commands = self._commands()
            if any(isinstance(command, Shutdown) for command in commands):
                if self._backing is not None:
                    self._backing.close(LAST_SECONDS)
                return
            for command in commands:
                self._obey(command)
            self._settle()
            if self._running and not self._standstill():
                self._step()
                self._settle()
            if self._readings.current is not None:
                self._read(self._readings.current)
                self._settle()

    def last_words(self) -> None:
        """What the engine held when it found no more memory; it is never stepped again."""
        self._reporter.memory()

    def _commands(self) -> list[Command]:
        """All that wait; with nothing to step, waits for some."""
        commands: list[Command] = []
        if self._readings.current is not None:
            pass
        elif not self._running:
            self._end_turn()
            commands += self._pause()
        elif left := self._standstill():
            self._end_turn()
            commands += self._hear(min(left, SIGN_OF_LIFE_SECONDS))
        while not self._inbox.empty():
            commands += self._inbox.get()
        return commands

    def _pause(self) -> list[Command]:
        """Those who wait for memory are told once a second that they are not forgotten."""
        if not self._ledger.waits:
            self._rest()
            return self._linger()
        return self._hear(SIGN_OF_LIFE_SECONDS)

    def _linger(self) -> list[Command]:
        """Nobody asks for anything: what is kept is put on disk, what is to be kept is read, and
        what is only kept for reuse is given back.
        """
        backing = self._backing
        if backing is not None and backing.keeps and not backing.is_awaited:
            self._warming.begin()
        while pause := self._idle.work():
            with suppress(queue.Empty):
                return self._inbox.get(timeout=pause)
        return self._inbox.get()

    def _standstill(self) -> float:
        """Seconds for which there is to be no step, unless memory is granted before."""
        return max(0.0, self._ledger.stands_until - time.monotonic())

    def _hear(self, seconds: float) -> list[Command]:
        """What comes in this time; a sign of life when nothing does."""
        try:
            return self._inbox.get(timeout=seconds)
        except queue.Empty:
            self._reporter.report([])
            return []

    def _rest(self) -> None:
        """A busy time is over: say what it took."""
        if not self._busy:
            return
        self._busy = False
        peak = self._allocator.measure().peak - min(self._kept, self._cache.nbytes)
        self._idle.begin()
        largest = self._ledger.observed()
        self._link.send(Observed(largest.predicted_bytes, peak, largest.rows, largest.longest))

    def _obey(self, command: Command) -> None:
        match command:
            case Job():
                self._receive(command)
            case Cancel():
                self._cancel(command.id)
            case Fetched():
                for job in self._backing.arrived(command) if self._backing is not None else ():
                    self._ask(job)
            case CacheAsk():
                self._link.send(self._cache.stats(command.id))
            case CacheClear():
                self._cache.clear(disk=command.disk)
                if self._backing is not None:
                    self._backing.forget()
                self._warming.again()
                self._reporter.memory()
                self._link.send(self._cache.stats(command.id))
            case Budget() | Tuning() | PrefixRules() | Trim():
                self._follow(command)
            case Shutdown():
                pass

    def _follow(self, wish: Budget | Tuning | PrefixRules | Trim) -> None:
        """Of the daemon."""
        match wish:
            case Budget():
                self._ledger.set_budget(wish)
                self._allocator.apply(wish)
                self._turns.exclusive = wish.exclusive
                if self._cache.shrink(wish.prefix_bytes):
                    self._reporter.memory()
            case Tuning():
                self._tuned.now = wish
            case PrefixRules():
                if wish.warm is not None:
                    self._warming.apply(wish.warm)
                if self._backing is not None:
                    self._backing.apply(wish)
                    if self._cache.fit():
                        self._reporter.memory()
            case Trim():
                self._idle.give_back()

    def _receive(self, job: Job) -> None:
        """One that has been given all it may have needs no engine to end."""
        if job.id < 0:
            self._warm(job)
            return
        self._make_way()
        if job.reads:
            self._readings.add(job)
            self._call()
        elif job.left > 0:
            self._look_for(job)
        else:
            pieces = _told(job)
            now = stamp()
            ended = self._maker.running(job, Guard()).close(now, pieces)
            self._link.send(_accepted(job))
            self._reporter.report([*pieces, ended], [job.id], moments=(now, 0.0))

    # -- prompts that are read before anybody asks

    def _warm(self, job: Job) -> None:
        """It has the engine while nobody else wants it, and memory that nobody need give up."""
        wanted = self._warming.job(job)
        if wanted is None:
            return
        if self._running or self._waiting or self._readings:
            self._warming.put_off()
        else:
            self._look_for(wanted)

    def _make_way(self) -> None:
        """Somebody comes."""
        id = self._warming.current
        if id is None:
            return
        self._warming.put_off()
        if self._ledger.withdraw(id):
            del self._waiting[id]
        elif not self._drop(id):
            self._stop_looking(id)

    # -- in and out of the engine

    def _look_for(self, job: Job) -> None:
        """What is on disk for it is read before it asks for memory."""
        if self._backing is None or not self._backing.wait(job):
            self._ask(job)

    def _ask(self, job: Job) -> None:
        """For memory."""
        self._waiting[job.id] = job
        self._ledger.ask(_claim_of(job))

    def _settle(self) -> None:
        """Do what the ledger decides; whoever asks because of that is decided about, too."""
        again = True
        while again:
            before = len(self._readings)
            verdict = self._ledger.decide(time.monotonic())
            for message in verdict.say:
                if isinstance(message, Refused):
                    del self._waiting[message.id]
                    self._stop_reading(message.id)
                    self._warming.over(message.id)
                self._link.send(message)
            self._admit([self._waiting.pop(id) for id in verdict.admit])
            again = len(self._readings) < before

    def _admit(self, jobs: list[Job]) -> None:
        if jobs and not self._busy:
            self._busy = True
            self._kept = self._cache.nbytes
            self._allocator.reset_peak()
        for job in jobs:
            if job.reads:
                self._readings.begin()
                self._link.send(_accepted(job))
        self._insert([job for job in jobs if not job.reads])

    def _insert(self, jobs: list[Job], *, told: bool = False) -> None:
        """`told`: that they are accepted."""
        if not jobs:
            return
        guards = [Guard() for _ in jobs]
        make = self._maker.prompt
        prompts = [make(job, guard, job.earlier) for job, guard in zip(jobs, guards, strict=True)]
        try:
            uids = self._engine.insert(prompts)
        except ValueError as error:
            self._insert_apart(jobs, error)
            return
        for uid, job, guard, prompt in zip(uids, jobs, guards, prompts, strict=True):
            self._running[uid] = self._maker.running(job, guard)
            self._uids[job.id] = uid
            if not told:
                self._link.send(_accepted(job, self._reach(job, prompt)))
        self._count()
        pieces = [piece for job in jobs for piece in _told(job)]
        if pieces:
            self._reporter.report(pieces)

    def _reach(self, job: Job, prompt: Prompt) -> int:
        """How much of its prompt would be found now."""
        if self._prefixes is None:
            return 0
        return min(self._prefixes.reach(prompt), len(job.tokens))

    def _insert_apart(self, jobs: list[Job], error: ValueError) -> None:
        """The engine refuses a list whole: find out whose fault it is."""
        if len(jobs) == 1:
            print_trace(error, jobs[0].trace)
            self._ledger.left(jobs[0].id)
            words = "the engine does not take this request"
            self._link.send(Refused(jobs[0].id, "invalid_request", words))
            return
        for job in jobs:
            self._insert([job])

    def _cancel(self, id: int) -> None:
        self._warming.over(id)
        if self._ledger.withdraw(id):
            del self._waiting[id]
            self._stop_reading(id)
        elif not (self._drop(id) or self._stop_reading(id) or self._stop_looking(id)):
            return
        self._reporter.report([Cancelled(id, stamp())])

    def _stop_looking(self, id: int) -> bool:
        return self._backing is not None and self._backing.leave(id)

    def _drop(self, id: int) -> bool:
        """Whether it held memory; it no longer does."""
        current = self._readings.current
        if id in self._uids:
            self._forget([self._uids[id]])
        elif current is not None and current.id == id:
            self._ledger.left(id)
            self._stop_reading(id)
        else:
            return False
        return True

    def _forget(self, uids: Iterable[int]) -> None:
        uids = list(uids)
        ids = [self._running.pop(uid).job.id for uid in uids]
        for id in ids:
            del self._uids[id]
            self._warming.over(id)
        self._ledger.left(*ids)
        self._count()
        with self._bearing():
            self._engine.remove(uids)
        self._mend()

    def _count(self) -> None:
        self._progress.running = len(self._running) + len(self._readings)

    # -- reading beside the engine

    def _call(self) -> None:
        """Have the next one ask for memory."""
        job = self._readings.call()
        if job is not None:
            self._ask(job)
        self._count()

    def _stop_reading(self, id: int) -> bool:
        """Whether it was to be read."""
        if not self._readings.leave(id):
            return False
        self._call()
        return True

    def _read(self, job: Job) -> None:
        """One chunk of its prompt."""
        first = not self._readings.since
        if first:
            self._ledger.started([job.id])
        try:
            with self._turns.turn():
                pieces = self._readings.step()
        except Refusal as refusal:
            self._refuse(job, refusal)
            return
        except Exception as error:
            if is_exhaustion(error):
                raise
            print_trace(error, job.trace)
            self._refuse(job, Refusal("this model cannot read the input", code="unsupported"))
            return
        self._progress.step += 1
        started = [job.id] if first else []
        if pieces is not None:
            self._have_read(job, pieces, started)
        elif started or self._reporter.sign_of_life_is_due:
            self._reporter.report([], started, moments=(self._readings.since, 0.0))
        self._look()

    def _refuse(self, job: Job, refusal: Refusal) -> None:
        """One that is being read: nobody else is touched, whatever was wrong with it."""
        self._drop(job.id)
        self._link.send(Refused(job.id, refusal.code, refusal.message, refusal.param))

    def _have_read(self, job: Job, pieces: list[Piece], started: list[int]) -> None:
        """It ends with that, or goes on in the engine, with the memory that it has."""
        since, now = self._readings.since, stamp()
        *early, last = pieces
        for piece in early:  # in messages of their own, or together they would be too long for one
            self._reporter.report([piece], started, moments=(since, 0.0))
            started = []
        pieces = [last]
        if job.left > 0:
            self._reporter.report(pieces, started, moments=(since, 0.0))
            self._stop_reading(job.id)
            self._ledger.entered(job.id)
            self._insert([replace(job, echo=None)], told=True)
            return
        reason: FinishReason = "stop" if job.request.want == "embedding" else "length"
        ended = Ended(job.id, reason, len(job.tokens), 0, 0, now - since, 0.0, at=now)
        self._drop(job.id)
        self._reporter.report([*pieces, ended], started, [job.id], moments=(since, now))

    # -- an engine that fails

    @contextmanager
    def _bearing(self) -> Iterator[None]:
        """What the engine raises in the block breaks it, if it has been sound for long enough; else
        it is raised on.
        """
        try:
            yield
        except Exception as error:
            if is_exhaustion(error) or self._progress.step < self._sound_from:
                raise
            print_trace(error)
            self._broken = True

    def _mend(self) -> None:
        """Make a broken engine anew; those in it are read again and go on behind what they have."""
        if not self._broken:
            return
        self._broken = False
        self._sound_from = self._progress.step + SOUND_STEPS
        self._engine = self._make_engine()
        if self._backing is not None:
            self._backing.distrust()
        self._warming.again()
        self._allocator.reapply()
        self._allocator.trim()
        runs = list(self._running.values())
        for running in runs:
            running.guard = Guard()
        prompts = [self._maker.prompt(run.job, run.guard, run.tokens) for run in runs]
        uids = self._engine.insert(prompts) if prompts else []
        self._running = dict(zip(uids, runs, strict=True))
        self._uids = {run.job.id: uid for uid, run in self._running.items()}
        self._ledger.again()
        go_on = f"{plural(len(runs), 'request')} {form(len(runs), 'goes', 'go')} on in it"
        sys.stderr.write(f"the engine was made anew, and {go_on}\n")

    # -- stepping

    def _end_turn(self) -> None:
        """There is no step for now: other engines may have theirs."""
        with self._bearing():
            self._turns.end()
        self._mend()

    def _step(self) -> None:
        step, before = Step([], []), 0.0
        with self._bearing(), self._turns.turn():
            before = stamp()
            step = self._engine.step()
        if self._broken:
            self._mend()
            return
        self._progress.step += 1
        reused = self._reuse(step.reused)
        started = self._start(step.started, before)
        now = stamp()
        said = _Said()
        for drafts in step.drafts:
            self._running[drafts.uid].count(drafts)
        engine = self._engine
        for tokens in _in_turn(step):
            if self._engine is not engine:  # made anew meanwhile, it has other uids
                break
            self._take([token for token in tokens if token.uid in self._running], now, said)
        if said.pieces or started or said.begun or self._reporter.sign_of_life_is_due:
            self._reporter.report(
                said.pieces, started, said.begun, said.runs.values(), reused, moments=(before, now)
            )
        for running in said.failed:
            self._fail(running)
        self._look()

    def _take(self, tokens: Sequence[Token], now: float, said: _Said) -> None:
        """One token of each sequence, at most."""
        runs = [self._running[token.uid] for token in tokens]
        last = self._ledger.took([running.job.id for running in runs])
        leaving: list[int] = []
        for running, token in zip(runs, tokens, strict=True):
            said.runs[token.uid] = running
            if running.begins:
                said.begun.append(running.job.id)
            if running.take(token, now, said.pieces, last=running.job.id in last):
                said.pieces.append(running.ended(now))
                leaving.append(token.uid)
            elif running.guard.error is not None:
                said.failed.append(running)
                leaving.append(token.uid)
        if leaving:
            self._forget(leaving)

    def _start(self, uids: Sequence[int], now: float) -> list[int]:
        """Their prefill begins; returns the ids of those for which it does so first."""
        runs = [self._running[uid] for uid in uids]
        self._ledger.started([running.job.id for running in runs])
        first = [running for running in runs if not running.started]
        for running in first:
            running.started = now
        return [running.job.id for running in first]

    def _reuse(self, reuses: Iterable[Reuse]) -> list[Reused]:
        """What is found for those whose prefill begins for the first time here."""
        told = []
        for reuse in reuses:
            running = self._running[reuse.uid]
            if not running.started:
                job, missed = running.job, reuse.missed
                running.cached = min(reuse.cached, len(job.tokens))
                turn = message_at(job.outline.turns, missed) if missed >= 0 else -1
                told.append(Reused(job.id, running.cached, missed, turn))
        return told

    def _fail(self, running: Running) -> None:
        words = f"sampling failed: {running.guard.error}"
        self._link.send(Refused(running.job.id, "invalid_request", words))

    def _look(self) -> None:
        """Now and then, at what is held."""
        if self._progress.step % CHECK_EVERY == 0:
            refused = self._excess.look()
            if refused is not None:
                self._drop(refused.id)
                self._link.send(refused)
            if self._backing is not None:
                self._backing.tend(idle=False)


@dataclass(slots=True)
class _Said:
    """What a step makes known."""

    pieces: list[Piece] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    """Requests whose first token it gave."""
    runs: dict[int, Running] = field(default_factory=dict)
    """Whose tokens these are, by uid."""
    failed: list[Running] = field(default_factory=list)
    """Those whose sampling failed."""


def _in_turn(step: Step) -> Iterable[Sequence[Token]]:
    """Its tokens, no two of one sequence together: only drafts give it several."""
    return [[token] for token in step.tokens] if step.drafts else [step.tokens]


def _accepted(job: Job, cached: int = 0) -> Accepted:
    return Accepted(
        job.id, len(job.tokens), cached, prompt=job.packed, received=job.received, at=stamp()
    )


def _told(job: Job) -> list[Piece]:
    """Its prompt, where that is told unscored."""
    return [] if job.echo is None else [Echoed(job.id, job.echo.text)]


def _claim_of(job: Job) -> Claim:
    return Claim(
        id=job.id,
        prompt=len(job.tokens) + len(job.earlier),
        max_tokens=job.left,
        expected_output=job.expected_output,
        until=time.monotonic() + job.wait_seconds,
        patient=job.wait_seconds > 0,
        spares=job.id < 0,
        apart=job.reads,
    )
