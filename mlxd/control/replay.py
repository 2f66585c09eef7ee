"""Goes on with a request on the next worker when its worker died, in the same stream of events.

The ticket and the lease are held all the while. What a worker died of is not known: see suspects.py
for who runs alone next, and who is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio import FIRST_COMPLETED
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mlxd.control.changes import Changes
from mlxd.control.exit import Exit
from mlxd.control.gate import Gate, Turn
from mlxd.control.generation import too_long
from mlxd.control.loading import by_limit
from mlxd.control.order import Order
from mlxd.control.residency import Lease
from mlxd.control.reuses import Reuses
from mlxd.control.suspects import Case, Suspect, Suspects
from mlxd.control.telling import Telling
from mlxd.control.tempo import Tell, Tempo
from mlxd.control.transcript import Transcript
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock, within
from mlxd.core.counts import form, plural
from mlxd.core.errors import (
    InsufficientMemory,
    MlxdError,
    ModelLoadFailed,
    RequestQuarantined,
    ResumeExpired,
    WorkerCrashed,
    WorkerStalled,
)
from mlxd.core.events import Burst, Finished, Started
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.core.request import Sampling
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLEARED_TOKENS = 4
"""How much further than before a suspect must come, alone, to be none any more."""
_WAYS = 2
"""How often a request makes way for others before it has come that much further, too."""
_MOST_WAITING_BYTES = 4 << 20
"""Of the answers of one call whose client is slow, again and again; in memory twice as much."""
_GONE_SECONDS = 5.0
"""How long a killed worker may take to be gone."""


class _MakesWay(MlxdError):
    """Somebody else must be alone now, or its client is far behind; it goes on right after."""


def fresh_seed() -> int:
    """One that nobody can foretell."""
    return int.from_bytes(os.urandom(8), "big") >> 1


def seeded(sampling: Sampling, draw: Callable[[], int]) -> Sampling:
    """With a seed where tokens are drawn: whoever goes on must draw the same ones."""
    if sampling.seed is not None or sampling.temperature == 0:
        return sampling
    return replace(sampling, seed=draw())


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A request that is refused; dates in seconds since the epoch."""

    model: str
    client: str
    since: float
    until: float


class Replays:
    """Runs every generation of the daemon."""

    def __init__(self, clock: Clock, under_pressure: Callable[[], bool]) -> None:
        """`under_pressure`: whether the system may have killed somebody for want of memory."""
        self.on_replay: Callable[[str], None] | None = None
        """Told what became of each request whose worker died: `completed` or `failed` on another
        one, `abandoned` by its client meanwhile, or `refused` a replay.
        """
        self.on_malformed: Callable[[str, int], None] | None = None
        """Told of tool calls that could not be read: the model's name, and how many."""
        self.reuses = Reuses()
        """What of prompts need not be computed again."""
        self.on_drafts: Callable[[str, int, int], None] | None = None
        """Told of tokens that were drafted for a model, by its name, and how many came true."""
        self.on_latency: Tell | None = None
        """Told how fast answers are."""
        self.on_event: Callable[[str, str, Mapping[str, Any]], object] | None = None
        """Told of each replay: type, words, data."""
        self._clock = clock
        self._under_pressure = under_pressure
        self._suspects = Suspects()
        self._gates: WeakKeyDictionary[Worker, Gate] = WeakKeyDictionary()
        self._accused: WeakKeyDictionary[Worker, bool] = WeakKeyDictionary()
        """Whether a worker's death says something against what ran on it."""
        self._coming: Counter[ModelSpec] = Counter()
        """Interrupted requests that wait for the next worker."""
        self._came = Changes()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Future[MlxdError]] = set()
        self._over: MlxdError | None = None

    def check(self, case: Case, policies: PolicySet) -> None:
        """Raises RequestQuarantined."""
        found = self._suspects.find(case, self._clock.monotonic())
        if found is not None and found.quarantined:
            raise self.refusal(case, found, policies)

    def run(
        self,
        order: Order,
        case: Case,
        lease: Lease,
        policies: PolicySet,
        *,
        transcript: Transcript | None = None,
    ) -> AsyncGenerator[Burst, None]:
        """One generation, on as many workers as it takes. Raises what the last one did.

        It goes on behind `transcript`, and adds to it: what that has left is given first.
        """
        made = transcript or Transcript()
        return _Run(self, order, case, lease, policies, transcript=made).bursts()

    def fail_all(self, error: MlxdError) -> None:
        """From now on nobody waits for a worker: who does, or would, gets `error`."""
        self._over = error
        for wait in self._waits:
            if not wait.done():
                wait.set_result(error)

    def quarantined(self) -> list[Quarantined]:
        """Those that are refused, the oldest first."""
        now = self._clock.monotonic()
        ahead = self._clock.wall() - now
        return [
            Quarantined(one.model, one.client, one.since + ahead, one.until + ahead)
            for one in self._suspects.quarantined(now)
        ]

    def reset(self, card: ModelCard) -> int:
        """Forget what is held against requests to a model; says how many were refused."""
        return self._suspects.reset(card)

    @property
    def waiting(self) -> int:
        """How many stand in line at the gate of a worker: somebody must be alone there."""
        return sum(gate.waiting for gate in self._gates.values())

    # -- for a run

    def gate_of(self, worker: Worker) -> Gate:
        if worker not in self._gates:
            self._gates[worker] = Gate()
        return self._gates[worker]

    def suspected(self, case: Case) -> bool:
        return self._suspects.find(case, self._clock.monotonic()) is not None

    def clear(self, case: Case) -> None:
        log.info("a request to %s that was suspected has come further than before", case.model)
        self._suspects.clear(case)

    def accuse(self, case: Case, worker: Worker, policies: PolicySet) -> Suspect | None:
        """Hold a worker's death against a request that ran on it, where that says something."""
        if worker.exit is not None and worker not in self._accused:
            self._accused[worker] = self._accuses(worker.exit)
        if not self._accused.get(worker):
            return None
        quarantine, now = policies.supervision.quarantine, self._clock.monotonic()
        alone = worker.victims <= 1
        found = self._suspects.accuse(case, worker.pid, quarantine, now, alone=alone)
        if found.quarantined:
            log.error("%s", self.refusal(case, found, policies).message)
        return found

    def refusal(self, case: Case, found: Suspect, policies: PolicySet) -> RequestQuarantined:
        """What a quarantined request is told."""
        left = found.until - self._clock.monotonic()
        workers = plural(found.kills, "worker")
        cure = f"`mlxd models reset {case.model}`"
        return RequestQuarantined(
            f"{workers} of model '{case.model}' died of this request; it is refused for another"
            f" {left:.0f} s, or until {cure}",
            retry_after=left,
            policy=policies.line("supervision.quarantine.for"),
            numbers={"workers_died": found.kills, "left_seconds": round(left)},
            would_pass=f"another request, or the same one after {cure}",
        )

    def ended(self, model: str, end: Finished) -> None:
        """An answer is whole. Calls that could not be read went out as text."""
        if end.drafted_tokens and self.on_drafts is not None:
            self.on_drafts(model, end.drafted_tokens, end.accepted_tokens)
        if end.malformed_calls:
            log.warning(
                "%s of %s could not be read, and %s text",
                plural(end.malformed_calls, "tool call"), model,
                form(end.malformed_calls, "is", "are"),
            )  # fmt: skip
            if self.on_malformed is not None:
                self.on_malformed(model, end.malformed_calls)

    def tempo_of(self, order: Order) -> Tempo | None:
        """A vector is no token, and a prompt is told at once."""
        tell = self.on_latency
        return Tempo(tell) if tell is not None and order.request.want == "answer" else None

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def wait(self, work: Awaitable[T]) -> T:
        """What `work` gives; raises what everybody is told to raise meanwhile."""
        stop: asyncio.Future[MlxdError] = asyncio.get_running_loop().create_future()
        if self._over is not None:
            stop.set_result(self._over)
        self._waits.add(stop)
        task = asyncio.ensure_future(work)
        try:
            both: set[asyncio.Future[Any]] = {task, stop}
            await asyncio.wait(both, return_when=FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise copy(stop.result())
        finally:
            self._waits.discard(stop)
            task.cancel()

    async def wait_until(self, work: Awaitable[T], seconds: float, late: MlxdError) -> T:
        """The same; raises `late` after that time."""
        try:
            async with within(self._clock, max(0.0, seconds)):
                return await self.wait(work)
        except TimeoutError:
            raise late from None

    @contextmanager
    def comes(self, spec: ModelSpec) -> Iterator[None]:
        """An interrupted request waits for the next worker, and then enters its gate at once."""
        self._coming[spec] += 1
        try:
            yield
        finally:
            self._coming[spec] -= 1
            if not self._coming[spec]:
                del self._coming[spec]
                self._came.tell()

    async def let_come(self, spec: ModelSpec) -> None:
        """Wait until those that were interrupted stand at the gate: they were here first."""
        while spec in self._coming:
            await self._came.wait(None)

    def own(self, work: Coroutine[None, None, None]) -> None:
        """To be done, whoever asked for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- inside

    def _accuses(self, end: Exit) -> bool:
        """The system sends SIGKILL to whoever took its memory; else signals come from people."""
        if end.asked:
            return False
        if not end.from_outside:
            return True
        sent = end.verdict is None and end.status == -signal.SIGKILL
        return sent and self._under_pressure()


class _Run:
    """One request, over all its workers."""

    def __init__(
        self,
        replays: Replays,
        order: Order,
        case: Case,
        lease: Lease,
        policies: PolicySet,
        *,
        transcript: Transcript,
    ) -> None:
        self._replays = replays
        self._order = order
        self._case = case
        self._lease = lease
        self._policies = policies
        self._transcript = transcript
        transcript.go_on(replays.monotonic(), replays.tempo_of(order))
        self._telling = Telling(
            order.story,
            len(transcript.tokens),
            transcript.decode_seconds,
            order.request.messages or (),
            answer=transcript.tokens,
        )
        self._interrupted = False
        self._early = False
        """It has run before, and goes on before others begin."""
        self._ways = 0
        """How often it has made way since it came further."""
        self._way_at = 0
        """Tokens that there were when it last did."""
        self._attempt = 0
        """How often it was replayed."""
        self._aside_at = 0.0
        """When it last left a worker by itself."""
        self._seen = order.request.stream and transcript.begun
        """The client has got something of the answer."""
        self._died_at = 0
        """Tokens that there were when the last worker died."""

    async def bursts(self) -> AsyncGenerator[Burst, None]:
        """To its end, or to the error that it ends with."""
        outcome = "abandoned"
        try:
            async with aclosing(self._all()) as bursts:
                async for burst in bursts:
                    self._note(burst)
                    yield self._ended(burst) if type(burst[-1]) is Finished else burst
                    if not self._telling.listens:  # nor does anything here for what comes now
                        self._transcript.push = self._order.push
            outcome = "completed"
        except MlxdError:
            outcome = "failed" if self._attempt else "refused"
            raise
        finally:
            self._transcript.push = None
            self._telling.cut(len(self._transcript.tokens), self._transcript.decode_seconds)
            if self._interrupted and self._replays.on_replay is not None:
                self._replays.on_replay(outcome)

    async def _left_before(self) -> AsyncGenerator[Burst, None]:
        """What an earlier consumer did not take. What this one does not take either stays, behind
        what is given back of it meanwhile.
        """
        left, self._transcript.left = self._transcript.left, []
        taken = 0
        try:
            for burst in left:
                taken += 1
                yield burst
        finally:
            self._transcript.left += left[taken:]

    async def _all(self) -> AsyncGenerator[Burst, None]:
        async with aclosing(self._left_before()) as bursts:
            async for burst in bursts:
                yield burst
        while not self._transcript.finished:
            worker = await self._worker()
            self._check_model(worker)
            turn = self._enter(worker)
            try:
                await self._inside(turn)
                if turn.leaving or not worker.alive:
                    continue
                async with aclosing(self._on(worker, turn)) as bursts:
                    async for burst in bursts:
                        yield burst
                return
            except _MakesWay:
                self._waited_since(self._aside_at)
                continue
            except (WorkerCrashed, WorkerStalled, InsufficientMemory) as error:
                cause = error
            finally:
                turn.leave()
            await self._judge(worker, cause)
            del worker, cause  # whose traceback holds the dead one

    async def _on(self, worker: Worker, turn: Turn) -> AsyncGenerator[Burst, None]:
        """On one worker, to the end or until it makes way for another."""
        if turn.alone:
            enough = self._died_at + _CLEARED_TOKENS
            self._transcript.at(enough, partial(self._clear, worker, turn))
        self._transcript.too_much = partial(self._fall_behind, worker, turn)
        try:
            async with aclosing(worker.generate(self._order, self._transcript)) as bursts:
                async for burst in bursts:
                    yield burst
        finally:
            self._transcript.too_much = None
        if turn.alone:
            self._replays.clear(self._case)

    def _clear(self, worker: Worker, turn: Turn) -> None:
        """It was not the cause, if it still runs."""
        if worker.alive and not turn.over:
            self._replays.clear(self._case)
            turn.share()

    # -- beside others

    def _enter(self, worker: Worker) -> Turn:
        gate = self._replays.gate_of(worker)
        make_way = partial(self._make_way, worker)
        return gate.enter(
            alone=self._replays.suspected(self._case), early=self._early, make_way=make_way
        )

    def _make_way(self, worker: Worker, turn: Turn) -> bool:
        """Leave the worker, and go on behind whoever must be alone; not again and again without
        coming further meanwhile.
        """
        got, enough = len(self._transcript.tokens), self._way_at + _CLEARED_TOKENS
        if got >= enough:
            self._ways = 0
        elif self._ways >= _WAYS:
            self._transcript.at(enough, turn.ask)
            return False
        self._ways, self._way_at = self._ways + 1, got
        self._step_aside(worker, turn)
        return True

    def _fall_behind(self, worker: Worker, turn: Turn) -> None:
        """To go on takes its prompt again, where that is kept nowhere: a client that is slow by
        itself is the more seldom waited for.
        """
        waiting = self._transcript.most_waiting
        share = _MOST_WAITING_BYTES // self._order.story.requests
        self._transcript.most_waiting = max(waiting, min(2 * waiting, share))
        self._telling.fell_behind(len(self._transcript.tokens))
        self._step_aside(worker, turn)

    def _step_aside(self, worker: Worker, turn: Turn) -> None:
        """Leave the worker, and go on once the client has taken what there is."""
        self._early = True
        self._aside_at = self._replays.monotonic()
        worker.interrupt(self._transcript, _MakesWay("it goes on later"))
        self._replays.own(self._depart(worker, turn))

    async def _depart(self, worker: Worker, turn: Turn) -> None:
        """Its client may be slow to take what there is: nobody waits for that."""
        try:
            await worker.withdraw(self._transcript)
        finally:
            turn.leave()

    # -- waiting

    async def _worker(self) -> Worker:
        """The first one is there already; for a further one there is no more time than for any
        load, nor than the generation has left.
        """
        if not self._early:
            worker = await self._lease.worker()
            await self._replays.let_come(self._case.card.spec)
            return worker
        limit, left = float(self._policies.timeouts.model_load), self._left()
        late: MlxdError = too_long(self._order.limits, self._order.limits.generation)
        if limit <= left:
            late = ModelLoadFailed(
                f"no worker of model '{self._case.model}' was there within {limit:g} s",
                retry_after=10.0,
                policy=self._policies.line("timeouts.model_load"),
                numbers={"limit_seconds": limit},
                would_pass="the same request once its model is loaded, or a longer limit",
            )
        try:
            with self._replays.comes(self._case.card.spec):
                return await self._replays.wait_until(self._lease.worker(), min(limit, left), late)
        except MlxdError as error:
            if error is late:
                raise by_limit(self._lease.waits(), late) from None
            raise

    async def _inside(self, turn: Turn) -> None:
        """What it waits here for others, each of which has its limits, is none of its own time."""
        if turn.ready.done():
            return
        came = self._replays.monotonic()
        await self._replays.wait(turn.ready)
        self._waited_since(came)

    def _waited_since(self, moment: float) -> None:
        """No engine did anything for it meanwhile: that is none of its own time."""
        if self._transcript.started_at:
            self._transcript.started_at += self._replays.monotonic() - moment

    def _left(self) -> float:
        """Seconds of `timeouts.generation`: they count from the first prefill on."""
        began, limit = self._transcript.started_at, self._order.limits.generation
        return began + limit - self._replays.monotonic() if began else limit

    # -- judging

    def _check_model(self, worker: Worker) -> None:
        """An answer goes on with the model that it was begun with, whose files may have been
        replaced since, and so do all of one call; one of which its client has seen nothing begins
        anew with the new one. Raises WorkerCrashed; for a client that has come back,
        ResumeExpired.
        """
        begun = self._transcript.origin
        if not begun.told:
            begun.key = worker.key
        if not (begun.key and worker.key) or begun.key == worker.key:
            return
        changed = f"model '{self._case.model}' has changed since this answer was begun"
        if not (begun.came_back or self._seen or begun.parts > 1):
            self._begin_anew(worker, changed)
            return
        if self._early or not begun.came_back:
            raise WorkerCrashed(
                f"the engine process ended, and {changed}",
                retry_after=2.0,
                would_pass="the same request again, which begins anew",
            )
        raise ResumeExpired(
            changed, would_pass="the same request without Last-Event-ID, which begins anew"
        )

    def _begin_anew(self, worker: Worker, why: str) -> None:
        """Whoever collects a whole answer forgets what came of it when it starts once more."""
        log.info("%s, of which its client has seen nothing: it begins anew", why)
        origin = self._transcript.origin
        origin.key, origin.other_files = worker.key, True
        self._transcript.begin_anew(told_start=self._order.request.stream)
        self._telling.begun_anew()
        self._died_at = self._way_at = 0

    def _note(self, burst: Burst) -> None:
        """A client that wants the whole answer has seen nothing before its end."""
        if self._telling.listens:
            self._telling.hear(burst)
            for event in burst:
                if isinstance(event, Started) and event.reuse is not None:
                    self._replays.reuses.add(self._case.card.name, event)
        last = burst[-1]
        if isinstance(last, Finished) and not self._transcript.counted:
            self._transcript.counted = True
            self._replays.ended(self._case.card.name, last)
        if self._order.request.stream and not self._seen:
            self._seen = any(not isinstance(event, Started) for event in burst)

    def _ended(self, burst: Burst) -> Burst:
        """Its end tells what came of it over all its workers."""
        *before, last = burst
        assert isinstance(last, Finished)
        self._transcript.finished = True
        self._telling.finished(last)
        taken = last.prompt_tokens + last.completion_tokens
        last = replace(last, context_full=taken >= self._order.context)
        if self._order.request.tell_context:
            tokens = (*ipc.unpacked(self._transcript.prompt), *self._transcript.tokens)
            last = replace(last, context=tokens)
        return [*before, last]

    async def _judge(self, worker: Worker, error: MlxdError) -> None:
        """Raises the error, or a better one, where there is no replay."""
        if not worker.alive and worker.exit is None:
            await worker.gone(_GONE_SECONDS)
        if isinstance(error, InsufficientMemory) and not worker.out_of_memory:
            raise error
        self._interrupted = self._early = True
        found = self._accused(worker)
        if found is not None and found.quarantined and not worker.out_of_memory:
            raise self._replays.refusal(self._case, found, self._policies) from error
        if (found is not None and found.quarantined) or not self._may_replay():
            raise self._not_replayed(error) from error
        self._attempt += 1
        self._died_at = len(self._transcript.tokens)
        self._tell(worker)

    def _accused(self, worker: Worker) -> Suspect | None:
        """Inputs are read one after the other: those that were not yet read did nothing."""
        if self._order.request.want == "embedding" and not self._transcript.reached:
            return None
        return self._replays.accuse(self._case, worker, self._policies)

    def _may_replay(self) -> bool:
        policy = self._policies.supervision.replay
        if policy.when == "off" or self._attempt >= policy.attempts:
            return False
        return policy.when == "any" or not self._seen

    def _not_replayed(self, error: MlxdError) -> MlxdError:
        """The same, saying by which policy it ends here; others got it, too."""
        policy, told = self._policies.supervision.replay, copy(error)
        spent = policy.when != "off" and self._attempt >= policy.attempts
        key = f"supervision.replay.{'attempts' if spent else 'when'}"
        told.policy = told.policy or self._policies.line(key)
        told.numbers = {**told.numbers, "replays": self._attempt}
        return told

    def _tell(self, worker: Worker) -> None:
        reason = worker.exit.reason if worker.exit is not None else "stalled"
        words = (
            f"a request to {self._case.model} goes on with the next worker"
            f" ({reason}; {plural(self._died_at, 'token')} so far)"
        )
        self._telling.replayed(reason, self._died_at)
        if self._replays.on_event is not None:
            data = {
                "model": self._case.model, "attempt": self._attempt,
                "tokens": self._died_at, "reason": reason,
            }  # fmt: skip
            self._replays.on_event("replay", words, data)
