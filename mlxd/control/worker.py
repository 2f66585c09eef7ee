"""The handle on one engine process: spawned, ready, serving, exited. Born once, dies once.

Whatever happens to the process, each of its generations ends: with `Finished`, or with the error
that says why not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import cast

from msgspec.structs import replace

from mlxd.control.exit import Exit, Verdict
from mlxd.control.farewell import Farewell
from mlxd.control.generation import Generation, Pulse
from mlxd.control.load_progress import Told
from mlxd.control.order import Order, canary
from mlxd.control.process import KILLED_SECONDS, UNKNOWN, EngineProcess, Known, launch_of
from mlxd.control.questions import Questions
from mlxd.control.spare import Spare
from mlxd.control.transcript import Transcript
from mlxd.core.clock import Clock, within
from mlxd.core.errors import (
    DeadlineExceeded,
    InsufficientMemory,
    InvalidRequest,
    MlxdError,
    ModelLoadFailed,
    WorkerCrashed,
    WorkerStalled,
)
from mlxd.core.events import Burst
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelSpec
from mlxd.core.request import Want
from mlxd.core.stopping import FREEING_SECONDS
from mlxd.ipc import messages as ipc

log = logging.getLogger(__name__)

_ASKED_NICELY_SECONDS = 1.0
"""From the word `Shutdown` to SIGTERM. A healthy worker needs a tenth of it."""
_LOOK_SECONDS = 1.0
"""Between two looks at a process that loads."""
_LOADED = "the same request once that is mended; `mlxd crashes` shows its worker's last words"
_OTHER = "its worker is of another mlxd than this daemon, which has to be restarted"


class Worker(asyncio.Protocol):
    """One process with one model. A restart is a new Worker."""

    def __init__(
        self,
        spec: ModelSpec,
        name: str,
        clock: Clock,
        process: EngineProcess,
        budget: ipc.Budget | None = None,
    ) -> None:
        self.spec = spec
        self.name = name
        self.ready: ipc.Ready | None = None
        self.spare = False
        """Whether its process was there before its model was wanted."""
        self.told = Told(clock)
        """What it has said of its load."""
        self.memory = ipc.Memory(0, 0, 0)
        """What the engine holds, as it said last."""
        self.budget = budget
        """What it was last allowed."""
        self.exit: Exit | None = None
        """How the process ended, once it has."""
        self.on_need: Callable[[Worker, ipc.Need], None] | None = None
        """Answers with `set_budget`, in its own time; without one the present budget is final."""
        self.on_grammar: Callable[[], object] | None = None
        """Told when it makes what it needs for grammars."""
        self.on_observed: Callable[[Worker, ipc.Observed], None] | None = None
        self.on_token: Callable[[Worker], None] | None = None
        """Called once, when the first token of its first generation is delivered."""
        self.on_end: Callable[[Worker], None] | None = None
        """Called once, when the process is gone, asked for or not."""
        self.on_work: Callable[[], None] | None = None
        """Called when its load or one of its generations begins or ends."""
        self.step = 0
        """The last one that it told of."""
        self._clock = clock
        self._process = process
        self._tuning: ipc.Tuning | None = None
        self.lacks = ""
        """What it cannot do for now, beside what requests ask for; empty: nothing."""
        self.victims = 0
        """How many generations its end has cut off."""
        self._pulse = Pulse(ask=self._ask, condemn=self.condemn)
        self._farewell = Farewell(self, clock, self._pulse)
        self._questions = Questions(clock, self._send)
        self._buried = asyncio.Event()
        self._verdict: Verdict | None = None
        self._frames = ipc.FrameReader()
        self._generations: dict[int, Generation] = {}
        self._fed: dict[Generation, None] = {}
        """Those that have taken something since it was last handed on."""
        self._next_id = 1
        self._became_ready: asyncio.Future[ipc.Ready] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._lost = False
        """Its end has begun before anybody asked for it."""
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def spawn(
        cls,
        spec: ModelSpec,
        name: str,
        clock: Clock,
        *,
        temporary: Path,
        budget: ipc.Budget | None = None,
        known: Known = UNKNOWN,
    ) -> Worker:
        """Start a process; it loads its model by itself (see `until_ready`).

        Raises ModelLoadFailed when the system gives no process.
        """
        try:
            fresh = await Spare.start(temporary, clock)
        except OSError as error:
            raise ModelLoadFailed(
                f"no engine process could be started for '{name}': {error.strerror}",
                retry_after=5.0,
                would_pass=_LOADED,
            ) from error
        try:
            await fresh.launch(launch_of(spec, temporary, budget, known))
        except BaseException:  # nobody else knows of it
            fresh.kill()
            raise
        return cls.of(fresh, spec, name, clock, budget)

    @classmethod
    def of(
        cls, spare: Spare, spec: ModelSpec, name: str, clock: Clock, budget: ipc.Budget | None
    ) -> Worker:
        """One that has been launched with this model. Its messages come once whoever calls this
        waits for something.
        """
        worker = cls(spec, name, clock, spare.process, budget)
        spare.hand_over(worker)
        worker._own(worker._bury())  # after its last words, where it has ended
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it may be asked for something; neither stopping nor condemned."""
        return self._transport is not None and not self._stopping

    @property
    def condemned(self) -> bool:
        """Whether it was killed because it is not well."""
        return self._verdict is not None

    @property
    def out_of_memory(self) -> bool:
        """Whether the process ended because its engine found no memory."""
        return self.exit is not None and self.exit.reason == "out_of_memory"

    @property
    def stderr(self) -> str:
        """The last that it said there."""
        return self._process.stderr

    @property
    def lowest(self) -> tuple[int, float] | None:
        """The class of its generations that go first, as its place in PRIORITIES, and when the
        newest of that class was made, on the monotonic clock; None: none runs.
        """
        lowest = self._lowest()
        return (lowest.rank, lowest.created) if lowest is not None else None

    def runs(self, id: int) -> bool:
        """Whether a request that it was sent has not ended yet."""
        return id in self._generations

    @property
    def running(self) -> int:
        """Generations that it may still hold something of."""
        return sum(not generation.ended for generation in self._generations.values())

    @property
    def longest(self) -> int:
        """Tokens of its longest generation, prompt and answer, as far as it has told."""
        found = (g.transcript for g in self._generations.values() if not g.ended)
        return max((len(t.prompt) // ipc.TOKEN_BYTES + len(t.tokens) for t in found), default=0)

    @property
    def calm(self) -> Callable[[], bool]:
        """True while its silence says nothing, such as after the machine slept."""
        return self._pulse.calm

    @calm.setter
    def calm(self, calm: Callable[[], bool]) -> None:
        self._pulse.calm = calm

    @property
    def key(self) -> str:
        """Of what it computes by, once that is known: equal keys, equal models."""
        return self.ready.key if self.ready is not None else ""

    @property
    def footprint(self) -> Footprint | None:
        """What its model takes; known once that is loaded."""
        return self.ready.footprint if self.ready is not None else None

    def set_budget(self, budget: ipc.Budget) -> None:
        """What the engine may hold from now on; with `answers`, the answer to a `Need`."""
        self.budget = replace(budget, answers=0)
        self._send(budget)

    def tune(self, tuning: ipc.Tuning) -> None:
        """How the engine shares its time between prompts and answers from now on."""
        if tuning != self._tuning:
            self._tuning = tuning
            self._send(tuning)

    def value(self, rules: ipc.PrefixRules) -> None:
        """What the operator wants kept of earlier prompts from now on."""
        self._send(rules)

    def trim(self) -> None:
        """Have the engine free the buffers that it keeps for reuse."""
        self._send(ipc.Trim())

    async def ping(self, timeout: float) -> ipc.Pong | None:
        """Ask its IO side for a sign of life; None: it gave none in time, or is gone."""
        if self._transport is None:
            return None
        return await self._questions.ping(timeout)

    async def cache_stats(self, timeout: float) -> ipc.CacheStats | None:
        """What it keeps of earlier prompts; None: it did not say so in time, or is gone."""
        return await self._about_cache(ipc.CacheAsk, timeout)

    async def clear_cache(self, timeout: float, *, disk: bool) -> ipc.CacheStats | None:
        """Have it keep nothing of them, nor on `disk`; what there is then. None as above."""
        return await self._about_cache(partial(ipc.CacheClear, disk=disk), timeout)

    async def until_ready(self, stall: float = math.inf) -> ipc.Ready:
        """Wait for the model to be loaded. A process that a signal keeps stopped for `stall`
        seconds meanwhile loads nothing: it is ended.

        Raises ModelLoadFailed; the worker is then over.
        """
        stopped_at: float | None = None
        while not self._became_ready.done():
            with contextlib.suppress(TimeoutError):
                async with within(self._clock, min(_LOOK_SECONDS, stall)):
                    return await asyncio.shield(self._became_ready)
            now = self._clock.monotonic()
            stopped_at = (stopped_at or now) if self._process.suspended else None
            if stopped_at is not None and now - stopped_at >= stall and not self._pulse.calm():
                self.condemn("unresponsive")
        return await self._became_ready

    async def generate(
        self, order: Order, transcript: Transcript | None = None
    ) -> AsyncGenerator[Burst, None]:
        """Run one generation. Leaving the iterator early cancels it, and waits for that.

        It goes on behind `transcript`, and adds to it. Raises what went wrong: InvalidRequest,
        InsufficientMemory, WorkerCrashed, WorkerStalled, DeadlineExceeded.
        """
        generation = self._begin(order, transcript or Transcript())
        try:
            start = await generation.accepted()
            if not generation.transcript.told_start:
                generation.transcript.told_start = True
                yield (start,)
            async for burst in generation.bursts():
                yield burst
        finally:
            generation.leave()
            await self._settle(generation)

    async def canary(self, timeout: float, stall: float) -> None:
        """Have it generate one token, which is for nobody. One that is late is cancelled; a worker
        that makes no step for `stall` seconds and hears no cancel is ended.

        Raises WorkerStalled when none comes in time, WorkerCrashed, or ModelLoadFailed from a
        worker that answers and gives none.
        """
        context = self.ready.context if self.ready is not None else self.spec.context
        encodes = self.ready is not None and not self.ready.answers
        want: Want = "embedding" if encodes else "answer"
        now = self._clock.monotonic()
        order = canary(self.name, context, timeout, stall, now, want=want)
        transcript = Transcript()
        try:
            async with aclosing(self.generate(order, transcript)) as bursts:
                async for _ in bursts:
                    pass
        except DeadlineExceeded as error:
            raise WorkerStalled(
                f"the engine of model '{self.name}' gave no token within {timeout:g} s",
                retry_after=2.0,
                would_pass=_LOADED,
            ) from error
        except (InvalidRequest, InsufficientMemory) as error:
            if self.alive:
                raise self._fruitless(error.message) from error
            raise
        if not transcript.begun:
            raise self._fruitless("it ended without one")

    def _fruitless(self, why: str) -> ModelLoadFailed:
        return ModelLoadFailed(
            f"model '{self.name}' is loaded and generates nothing: {why}",
            retry_after=10.0,
            would_pass=_LOADED,
        )

    def fail_all(self, error: MlxdError) -> None:
        """End every generation with `error`; what the process still does is for nobody."""
        for generation in list(self._generations.values()):
            generation.fail(error)

    def interrupt(self, transcript: Transcript, error: MlxdError) -> bool:
        """Cancel the generation that fills `transcript`, whose consumer gets `error` after all that
        has come; False: it has ended.
        """
        running = (g for g in self._generations.values() if g.transcript is transcript)
        return any(generation.interrupt(error) for generation in running)

    async def withdraw(self, transcript: Transcript) -> None:
        """See to it that it holds nothing more of what fills `transcript` and was interrupted, even
        if the consumer does not look.
        """
        for generation in list(self._generations.values()):
            if generation.transcript is transcript:
                await self._settle(generation)

    def end_lowest(self, error: MlxdError) -> bool:
        """Cancel the newest generation of the lowest class that runs, whose client gets `error`;
        False: none runs.
        """
        lowest = self._lowest()
        return lowest is not None and lowest.interrupt(error)

    async def stop(self, grace: float) -> None:
        """Ask the process to end; SIGTERM; after `grace` seconds SIGKILL; wait until it is gone.

        Cancelled, it kills: nobody else knows of a worker that is being stopped.
        """
        self._stopping = True
        self._send(ipc.Shutdown())
        try:
            if await self._process.gone(_ASKED_NICELY_SECONDS):
                return
            self._process.signal(signal.SIGTERM)
            if await self._ends_within(grace):
                return
        except asyncio.CancelledError:
            self.kill()
            raise
        self.kill()
        await self._process.gone(KILLED_SECONDS)

    async def gone(self, timeout: float) -> bool:
        """Wait until its process is over and that is known; False: not in time."""
        try:
            async with within(self._clock, timeout):
                return await self._buried.wait()
        except TimeoutError:
            return False

    async def cleared(self, timeout: float) -> bool:
        """Wait until what its process leaves on disk is gone; False: not in time."""
        return await self._process.cleared(timeout)

    async def _ends_within(self, grace: float) -> bool:
        """Whether it ends by itself: in `grace` seconds, and in `FREEING_SECONDS` as long as each
        look finds that it holds less memory than the one before.
        """
        looks = max(2, math.ceil(grace))
        step = grace / looks
        look, held = 0, 0
        while not await self._process.gone(step):
            look += 1
            before, held = held, self.memory.active + self.memory.cache
            frees = held < before and look * step < FREEING_SECONDS
            if look >= looks and not frees:
                return False
            self._send(ipc.Ping())  # whose answer tells what it holds
        return True

    def kill(self) -> None:
        """SIGKILL the process's whole group: it is not wanted any more."""
        self._stopping = True
        self._process.signal(signal.SIGKILL)

    def condemn(self, verdict: Verdict) -> None:
        """SIGKILL the whole group, because it is not well: an end like that of a crash."""
        if not self._stopping:
            self._verdict = "suspended" if self._process.suspended else verdict
        self.kill()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._receive(ipc.decode_up(frame))
        except ipc.OtherProtocol as error:
            log.error("worker %s is of another mlxd: %s", self.name, error)
            self._fail_load(_OTHER, final=True)
            self.condemn("protocol")
        except ipc.BrokenFrame as error:
            log.error("worker %s broke the protocol: %s", self.name, error)
            self.condemn("protocol")
        finally:
            self._hand_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = not self._stopping
        self._transport = None

    # -- inside

    def _hand_on(self) -> None:
        """What has come together goes on together, be it of many steps."""
        fed, self._fed = self._fed, {}
        for generation in fed:
            generation.hand_on()

    def _receive(self, message: ipc.Up) -> None:
        match message:
            case ipc.Output():
                self._deliver(message)
            case ipc.Accepted() | ipc.Refused():
                generation = self._generations.get(message.id)
                if generation is not None:
                    generation.answer(message)
            case ipc.Hello() | ipc.Warm() | ipc.Loading() | ipc.Ready() | ipc.LoadFailed():
                self._follow_load(message)
            case ipc.Need() | ipc.Observed() | ipc.CacheStats():
                self._hear_of_memory(message)
            case ipc.Noted():
                log.warning("%s: %s", self.name, message.words)
            case ipc.Lacks():
                self._note_lack(message.words)
            case ipc.Deaf():
                self._note_deaf(message)
            case ipc.Pong():
                self._pulse.heard = self._clock.monotonic()
                self.memory = message.memory
                self.step = message.step
                self._questions.answered(message)

    def _hear_of_memory(self, message: ipc.Need | ipc.Observed | ipc.CacheStats) -> None:
        match message:
            case ipc.Need():
                self._answer_need(message)
            case ipc.Observed():
                self._note_observed(message)
            case ipc.CacheStats():
                self._questions.answered(message)

    def _follow_load(self, message: ipc.LoadUp) -> None:
        match message:
            case ipc.Hello() | ipc.Warm():
                pass  # whether a process is fresh is told by what it loads
            case ipc.Loading():
                self.told.hear(message)
            case ipc.Ready():
                self._serve(message)
            case ipc.LoadFailed():
                self._fail_load(message.reason, final=True, setting=message.setting)

    def _note_lack(self, words: str) -> None:
        self.lacks = words
        if words:
            log.warning("%s: %s", self.name, words)
        else:
            log.info("%s: what it could not do it can again", self.name)

    def _note_deaf(self, deaf: ipc.Deaf) -> None:
        self._pulse.forgiven = self._clock.monotonic() + deaf.seconds
        if self.on_grammar is not None:
            self.on_grammar()

    def _note_observed(self, observed: ipc.Observed) -> None:
        if self.on_observed is not None:
            self.on_observed(self, observed)

    def _note_work(self) -> None:
        if self.on_work is not None:
            self.on_work()

    def _serve(self, ready: ipc.Ready) -> None:
        self.ready = ready
        self.memory = ipc.Memory(ready.active_bytes, 0, ready.peak_bytes)
        if not self._became_ready.done():
            self._became_ready.set_result(ready)
        self._note_work()

    def _answer_need(self, need: ipc.Need) -> None:
        if self.on_need is not None:
            self.on_need(self, need)
        else:
            self.set_budget(replace(self.budget or ipc.Budget(0, 0, 0), answers=need.id))

    def _deliver(self, output: ipc.Output) -> None:
        self._pulse.at = self._clock.monotonic()
        self.step = output.step
        if output.memory is not None:
            self.memory = output.memory
        if output.started or output.begun:
            self._note_beginnings(output)
        find = self._generations.get
        for piece in output.pieces:
            if (generation := find(piece.id)) is not None:
                generation.take(piece)
                self._fed[generation] = None
        for taken in output.taken:
            if (generation := find(taken.id)) is not None:
                generation.note(taken.tokens)

    def _note_beginnings(self, output: ipc.Output) -> None:
        for id in output.started:
            if id in self._generations:
                self._generations[id].started(output.started_at)
        for reused in output.reused:
            if reused.id in self._generations:
                self._generations[reused.id].reused(reused)
        for id in output.begun:
            if id in self._generations:
                self._generations[id].begun(output.begun_at)
                self._tell_of_token()

    def _tell_of_token(self) -> None:
        """Once: the first token shows that it works."""
        told, self.on_token = self.on_token, None
        if told is not None:
            told(self)

    def _send(self, message: ipc.Down) -> None:
        if self._transport is not None:
            self._transport.write(ipc.encode(message))

    def _begin(self, order: Order, transcript: Transcript) -> Generation:
        """Raises WorkerCrashed; InvalidRequest."""
        if self._transport is None or self._stopping:
            raise self._crashed()
        leg = transcript.next_leg(self.pid, traced=order.story.trace is not None)
        frame = order.frame(self._next_id, transcript.resume(), leg.span_id)
        order.story.add_leg(leg)
        generation = Generation(
            self._next_id,
            order.limits,
            self._clock,
            self._pulse,
            transcript,
            priority=order.priority,
            arrived=order.arrived,
            fingerprint=order.fingerprint,
        )
        self._next_id += 1
        self._generations[generation.id] = generation
        self._transport.write(frame)
        self._note_work()
        return generation

    def _lowest(self) -> Generation | None:
        running = (g for g in self._generations.values() if g.under_way)
        return max(running, key=lambda g: (g.rank, g.id), default=None)

    def _ask(self) -> None:
        self._send(ipc.Ping())

    async def _about_cache(
        self, ask: Callable[[int], ipc.CacheAsk | ipc.CacheClear], timeout: float
    ) -> ipc.CacheStats | None:
        if self._transport is None or self.ready is None:
            return None
        return await self._questions.about_cache(ask, timeout)

    async def _settle(self, generation: Generation) -> None:
        """Cancel a generation that was left before its end, and wait for the worker's word.

        That word comes between two steps. When a step takes longer than `cancel_ack`, the slot is
        given back without it, and somebody else goes on waiting; but not where the worker had been
        silent for too long already.
        """
        try:
            if not generation.ended and self._transport is not None:
                if not generation.cancelled:
                    generation.cancelled = True
                    self._send(ipc.Cancel(generation.id))
                await self._farewell.take(generation)
        finally:
            if generation.ended:
                self._generations.pop(generation.id, None)
            else:
                self._own(self._expect_end(generation))
            self._note_work()

    async def _expect_end(self, generation: Generation) -> None:
        """One that the worker dies with is among its victims."""
        await self._farewell.outlast(generation)
        if generation.ended:
            self._generations.pop(generation.id, None)

    async def _bury(self) -> None:
        """Runs for the life of the process; then ends all that waited for it."""
        status = await self._process.ended
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        self._questions.end()
        asked = self._stopping and not self._lost and self._verdict is None
        self.exit = Exit(status, asked, self._verdict)
        self._fail_load("its worker ended before the model was loaded")
        self.victims = self.running
        for generation in self._generations.values():
            generation.leg.end(self.exit.reason)
        self.fail_all(self._crashed())
        self._note_work()
        if self.on_end is not None:
            self.on_end(self)
        self._buried.set()

    def _fail_load(self, reason: str, *, final: bool = False, setting: str = "") -> None:
        if not self._became_ready.done():
            error = ModelLoadFailed(
                f"model '{self.name}' could not be loaded: {reason}",
                retry_after=10.0,
                would_pass=_LOADED,
            )
            error.final, error.setting = final, setting
            self._became_ready.set_exception(error)
            self._became_ready.exception()

    def _crashed(self) -> MlxdError:
        if self.out_of_memory:
            return InsufficientMemory(
                f"the engine of model '{self.name}' ran out of memory",
                retry_after=5.0,
                would_pass="a shorter request, or the same one while less else is under way",
            )
        return WorkerCrashed(
            f"the engine process of model '{self.name}' ended; the next request starts a new one",
            retry_after=2.0,
            would_pass="the same request again",
        )

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
