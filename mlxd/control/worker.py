"""The handle on one engine process: spawned, ready, serving, exited. Born once, dies once.

Whatever happens to the process, each of its generations ends: with `Finished`, or with the error
that says why not.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mlxd.control.generation import Generation, Limits, Pulse
from mlxd.control.process import EngineProcess
from mlxd.core.clock import Clock
from mlxd.core.errors import InvalidRequest, MlxdError, ModelLoadFailed, WorkerCrashed
from mlxd.core.events import Burst, Started
from mlxd.core.models import ModelSpec
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc import messages as ipc

log = logging.getLogger(__name__)

_ASKED_NICELY_SECONDS = 1.0
"""From the word `Shutdown` to SIGTERM. A healthy worker needs a tenth of it."""
_KILLED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Order:
    """One generation as a worker is asked for it: the request with everything resolved."""

    request: GenerationRequest
    sampling: Sampling
    max_prompt: int
    max_output: int
    context: int
    limits: Limits
    arrived: float
    """When the client's request came, on the monotonic clock."""


class Worker(asyncio.Protocol):
    """One process with one model. A restart is a new Worker."""

    def __init__(self, spec: ModelSpec, name: str, clock: Clock, process: EngineProcess) -> None:
        self.spec = spec
        self.name = name
        self.ready: ipc.Ready | None = None
        self.memory = ipc.Memory(0, 0, 0)
        self.budget: ipc.Budget | None = None
        self._clock = clock
        self._process = process
        self._pulse = Pulse()
        self._last_pong = 0.0
        self._frames = ipc.FrameReader()
        self._generations: dict[int, Generation] = {}
        self._next_id = 1
        self._became_ready: asyncio.Future[ipc.Ready] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def spawn(cls, spec: ModelSpec, name: str, clock: Clock, *, temporary: Path) -> Worker:
        """Start the process; it loads its model by itself (see `until_ready`).

        Raises ModelLoadFailed when the system gives no process.
        """
        try:
            process, sock = await EngineProcess.spawn(spec, temporary)
        except OSError as error:
            raise ModelLoadFailed(
                f"no engine process could be started for '{name}': {error.strerror}",
                retry_after=5.0,
            ) from error
        worker = cls(spec, name, clock, process)
        worker._own(worker._bury())
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=sock)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._stopping

    @property
    def newest(self) -> float | None:
        """When its newest generation was made, on the monotonic clock; None: none runs."""
        return max((g.created for g in self._generations.values() if not g.ended), default=None)

    def end_newest(self, error: MlxdError) -> bool:
        """Its client gets `error`. False: none runs."""
        running = [g for g in self._generations.values() if not g.ended]
        if not running:
            return False
        max(running, key=lambda g: g.created).fail(error)
        return True

    def trim(self) -> None:
        """Have the engine free the buffers that it keeps for reuse."""
        self._send(ipc.Trim())

    async def until_ready(self) -> ipc.Ready:
        """Wait for the model to be loaded. Raises ModelLoadFailed; the worker is then over."""
        return await asyncio.shield(self._became_ready)

    async def generate(self, order: Order) -> AsyncGenerator[Burst, None]:
        """Run one generation. Leaving the iterator early cancels it, and waits for that.

        Raises what went wrong: InvalidRequest, WorkerCrashed, WorkerStalled, DeadlineExceeded.
        """
        if self._transport is None or self._stopping:
            raise self._crashed()
        frame = _frame_of(order, self._next_id)
        generation = Generation(self._next_id, order.limits, self._clock, self._pulse)
        self._next_id += 1
        self._generations[generation.id] = generation
        self._transport.write(frame)
        try:
            accepted = await generation.accepted()
            yield (
                Started(
                    accepted.prompt_tokens,
                    accepted.cached_tokens,
                    self._clock.monotonic() - order.arrived,
                ),
            )
            async for burst in generation.bursts():
                yield burst
        finally:
            await self._settle(generation)

    def fail_all(self, error: MlxdError) -> None:
        """End every generation with `error`; what the process still does is for nobody."""
        for generation in list(self._generations.values()):
            generation.fail(error)

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
            if await self._process.gone(grace):
                return
        except asyncio.CancelledError:
            self.kill()
            raise
        self.kill()
        await self._process.gone(_KILLED_SECONDS)

    def kill(self) -> None:
        """SIGKILL the process's whole group."""
        self._stopping = True
        self._process.signal(signal.SIGKILL)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._frames.feed(data):
                self._receive(ipc.decode_up(frame))
        except ipc.BrokenFrame as error:
            log.error("worker %s broke the protocol: %s", self.name, error)
            self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    # -- inside

    def _receive(self, message: ipc.Up) -> None:
        match message:
            case ipc.Output():
                self._deliver(message)
            case ipc.Accepted() | ipc.Refused():
                generation = self._generations.get(message.id)
                if generation is not None:
                    generation.answer(message)
            case ipc.Ready():
                self.ready = message
                if not self._became_ready.done():
                    self._became_ready.set_result(message)
            case ipc.LoadFailed():
                self._fail_load(message.reason)
            case ipc.Need() | ipc.Observed():
                pass
            case ipc.Pong():
                self.memory = message.memory
                self._last_pong = self._clock.monotonic()

    def _deliver(self, output: ipc.Output) -> None:
        if output.memory is not None:
            self.memory = output.memory
        self._pulse.at = self._clock.monotonic()
        for id in output.started:
            if id in self._generations:
                self._generations[id].started()
        for id in output.begun:
            if id in self._generations:
                self._generations[id].begun()
        for piece in output.pieces:
            generation = self._generations.get(piece.id)
            if generation is not None:
                generation.take(piece)

    def _send(self, message: ipc.Down) -> None:
        if self._transport is not None:
            self._transport.write(ipc.encode(message))

    async def _settle(self, generation: Generation) -> None:
        """Cancel a generation that was left before its end, and wait for the worker's word.

        That word comes between two steps. When a step takes longer than `cancel_ack`, the slot is
        given back without it, and somebody else goes on waiting.
        """
        try:
            if not generation.ended and self._transport is not None:
                self._send(ipc.Cancel(generation.id))
                await generation.until_ended(generation.limits.cancel_ack)
        finally:
            if generation.ended or self._transport is None:
                self._generations.pop(generation.id, None)
            else:
                self._own(self._expect_end(generation))

    async def _expect_end(self, generation: Generation) -> None:
        """Tell a long step from a wedge: it answers pings, and ends within the stall limit."""
        limits = generation.limits
        while not generation.ended and self.alive:
            asked = self._clock.monotonic()
            if asked - max(self._pulse.at, generation.created) >= limits.inter_token:
                log.error("worker %s makes no step and hears no cancel: killed", self.name)
                self.kill()
                break
            self._send(ipc.Ping())
            if await generation.until_ended(limits.cancel_ack):
                break
            if self._last_pong < asked:
                log.error("worker %s answers neither cancel nor ping: killed", self.name)
                self.kill()
        self._generations.pop(generation.id, None)

    async def _bury(self) -> None:
        """Runs for the life of the process; then ends all that waited for it."""
        status = await self._process.ended
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if status != 0 and not self._stopping:
            log.error(
                "worker %s ended with status %s", self.name, status,
                extra={"stderr": self._process.stderr},
            )  # fmt: skip
        self._fail_load("its worker ended before the model was loaded")
        self.fail_all(self._crashed())

    def _fail_load(self, reason: str) -> None:
        if not self._became_ready.done():
            self._became_ready.set_exception(
                ModelLoadFailed(
                    f"model '{self.name}' could not be loaded: {reason}", retry_after=10.0
                )
            )
            self._became_ready.exception()

    def _crashed(self) -> WorkerCrashed:
        return WorkerCrashed(
            f"the engine process of model '{self.name}' ended; the next request starts a new one",
            retry_after=2.0,
        )

    def _own(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _frame_of(order: Order, id: int) -> bytes:
    """Raises InvalidRequest for values that no message can carry."""
    message = ipc.Generate(
        id=id,
        request=order.request,
        sampling=order.sampling,
        max_prompt=order.max_prompt,
        max_output=order.max_output,
        context=order.context,
    )
    try:
        return ipc.encode(message)
    except ipc.Unsendable as error:
        raise InvalidRequest(f"the request holds an unusable value: {error}") from error
