"""The main thread: take commands, step, report. All of MLX happens here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlxd.core.events import FinishReason
from mlxd.ipc.messages import (
    Accepted,
    Cancel,
    Cancelled,
    Ended,
    Output,
    Piece,
    Refused,
    Shutdown,
)
from mlxd.worker.answer import Answer, PlainAnswer, joined
from mlxd.worker.detokenize import Detokenizers
from mlxd.worker.engine import Engine, Processor, Prompt, Token
from mlxd.worker.job import Command, Inbox, Job, Progress
from mlxd.worker.link import Link
from mlxd.worker.logprobs import Scorer
from mlxd.worker.markup import Markup
from mlxd.worker.sampling import Guard, processors_of, sampler_of

WHOLE_EVERY = 64
"""Tokens of an unstreamed answer that travel together."""
MEMORY_EVERY = 64
SIGN_OF_LIFE_SECONDS = 1.0
MOST_LOGPROBS = 20


@dataclass(slots=True)
class Running:
    """One request in the engine."""

    job: Job
    answer: Answer | PlainAnswer
    guard: Guard
    started: float = 0.0
    """When its prefill began."""
    first: float = 0.0
    tokens: int = 0
    """Generated ones; an end-of-sequence token counts, as mlx-lm counts it."""
    kept: list[Piece] = field(default_factory=list)
    """What an unstreamed answer has not sent yet."""

    def take(self, token: Token, now: float, out: list[Piece]) -> bool:
        """Add one token; what it makes known goes to `out`. Returns whether the request is over."""
        self.tokens += 1
        if self.tokens == 1:
            self.first = now
        pieces = out if self.job.request.stream else self.kept
        finish = token.finish_reason
        if finish != "stop":
            self.answer.take(token.token, token.logprobs, pieces)
        over = finish is not None or self.answer.stopped is not None
        if over:
            self.answer.finish(pieces, truncated=finish == "length")
        if pieces is self.kept and (over or self.tokens % WHOLE_EVERY == 0):
            out += joined(pieces)
            pieces.clear()
        return over

    def ended(self, token: Token, now: float) -> Ended:
        stopped = self.answer.stopped
        cut = token.finish_reason == "length" and stopped is None
        reason: FinishReason = "length" if cut else "stop"
        return Ended(
            id=self.job.id,
            reason=reason,
            prompt_tokens=len(self.job.tokens),
            completion_tokens=self.tokens,
            cached_tokens=0,
            prefill_seconds=self.first - self.started,
            decode_seconds=now - self.first,
            stop_string=stopped,
        )


class Loop:
    """Runs the engine over all requests until told to shut down."""

    def __init__(
        self,
        engine: Engine,
        link: Link,
        inbox: Inbox,
        progress: Progress,
        *,
        detokenizers: Detokenizers,
        markup: Markup,
        vocabulary: int,
    ) -> None:
        self._engine = engine
        self._link = link
        self._inbox = inbox
        self._progress = progress
        self._detokenizers = detokenizers
        self._markup = markup
        self._vocabulary = vocabulary
        self._running: dict[int, Running] = {}
        self._uids: dict[int, int] = {}
        self._memory_due = 0
        self._reported = 0.0

    def run(self) -> None:
        """Returns on `Shutdown`. Whatever escapes the engine escapes this."""
        while True:
            commands = self._commands()
            if any(isinstance(command, Shutdown) for command in commands):
                return
            self._insert([command for command in commands if isinstance(command, Job)])
            self._cancel([command.id for command in commands if isinstance(command, Cancel)])
            if self._running:
                self._step()

    def _commands(self) -> list[Command]:
        """All that wait; with nothing to step, waits for some."""
        commands: list[Command] = []
        if not self._running:
            mx.clear_cache()
            commands += self._inbox.get()
        while not self._inbox.empty():
            commands += self._inbox.get()
        return commands

    def _insert(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        guards = [Guard() for _ in jobs]
        prompts = [self._prompt(job, guard) for job, guard in zip(jobs, guards, strict=True)]
        try:
            uids = self._engine.insert(prompts)
        except ValueError as error:
            self._insert_apart(jobs, str(error))
            return
        for uid, job, guard in zip(uids, jobs, guards, strict=True):
            self._running[uid] = Running(job, self._answer(job), guard)
            self._uids[job.id] = uid
            self._link.send(Accepted(job.id, len(job.tokens)))
        self._progress.running = len(self._running)

    def _insert_apart(self, jobs: list[Job], reason: str) -> None:
        """The engine refuses a list whole: find out whose fault it is."""
        if len(jobs) == 1:
            self._link.send(Refused(jobs[0].id, "invalid_request", reason))
            return
        for job in jobs:
            self._insert([job])

    def _prompt(self, job: Job, guard: Guard) -> Prompt:
        sampling = job.sampling
        processors: list[Processor] = processors_of(sampling, guard, prompt_tokens=len(job.tokens))
        if job.grammar is not None:
            processors.append(guard.processor(job.grammar()))
        return Prompt(
            tokens=job.tokens,
            max_tokens=job.max_tokens,
            sampler=sampler_of(sampling, guard, vocabulary=self._vocabulary),
            processors=tuple(processors),
            scored=job.request.logprobs is not None,
        )

    def _answer(self, job: Job) -> Answer | PlainAnswer:
        request = job.request
        detokenizer = self._detokenizers.make()
        separator = self._markup.separator(request.tools, reasoning=job.reasoning)
        if separator is None and not request.stop and request.logprobs is None:
            return PlainAnswer(job.id, detokenizer)
        scorer = None
        if request.logprobs is not None:
            top = min(max(request.logprobs, 0), MOST_LOGPROBS, self._vocabulary)
            scorer = Scorer(self._detokenizers, top)
        return Answer(job.id, detokenizer, separator, job.stops, scorer)

    def _cancel(self, ids: list[int]) -> None:
        known = [id for id in ids if id in self._uids]
        if not known:
            return
        self._forget([self._uids[id] for id in known])
        self._report([Cancelled(id) for id in known])

    def _step(self) -> None:
        before = time.perf_counter()
        step = self._engine.step()
        self._progress.step += 1
        now = time.perf_counter()
        started = self._start(step.started, before)
        pieces: list[Piece] = []
        begun: list[int] = []
        leaving: list[int] = []
        failed: list[Running] = []
        for token in step.tokens:
            running = self._running[token.uid]
            if running.take(token, now, pieces):
                pieces.append(running.ended(token, now))
                leaving.append(token.uid)
            elif running.guard.error is not None:
                failed.append(running)
                leaving.append(token.uid)
            if running.tokens == 1:
                begun.append(running.job.id)
        if leaving:
            self._forget(leaving)
        if pieces or started or begun or now - self._reported >= SIGN_OF_LIFE_SECONDS:
            self._reported = now
            self._report(pieces, started, begun)
        for running in failed:
            self._fail(running)

    def _start(self, uids: Iterable[int], now: float) -> list[int]:
        """Their prefill begins; returns the requests' ids."""
        ids: list[int] = []
        for uid in uids:
            self._running[uid].started = now
            ids.append(self._running[uid].job.id)
        return ids

    def _fail(self, running: Running) -> None:
        words = f"sampling failed: {running.guard.error}"
        self._link.send(Refused(running.job.id, "invalid_request", words))

    def _forget(self, uids: Iterable[int]) -> None:
        uids = list(uids)
        self._engine.remove(uids)
        for uid in uids:
            del self._uids[self._running.pop(uid).job.id]
        self._progress.running = len(self._running)

    def _report(
        self, pieces: list[Piece], started: Sequence[int] = (), begun: Sequence[int] = ()
    ) -> None:
        step = self._progress.step
        memory = None
        if step >= self._memory_due:
            memory = self._progress.measure()
            self._memory_due = step + MEMORY_EVERY
        self._link.send(Output(step, pieces, memory, list(started), list(begun)))
