"""The handle on one engine process: spawned, ready, serving, exited. Born once, dies once.

Whatever happens to the process, each of its generations ends: with `Finished`, or with the error
that says why not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mlxd.control.generation import Generation, Limits, Pulse
from mlxd.core.clock import Clock
from mlxd.core.errors import InvalidRequest, ModelLoadFailed, WorkerCrashed
from mlxd.core.events import Burst, Started
from mlxd.core.models import ModelSpec
from mlxd.core.request import GenerationRequest, Sampling
from mlxd.ipc import messages as ipc

log = logging.getLogger(__name__)

_STDERR_TAIL = 8192


@dataclass(frozen=True, slots=True)
class Order:
    """One generation as a worker is asked for it: the request with everything resolved."""

    request: GenerationRequest
    sampling: Sampling
    max_prompt: int
    max_output: int
    limits: Limits
    arrived: float
    """When the client's request came, on the monotonic clock."""


class Worker(asyncio.Protocol):
    """One process with one model. A restart is a new Worker."""

    def __init__(self, spec: ModelSpec, name: str, clock: Clock) -> None:
        self.spec = spec
        self.name = name
        self.ready: ipc.Ready | None = None
        self.step = 0
        self.active_bytes = 0
        self._pulse = Pulse()
        self._clock = clock
        self._frames = ipc.FrameReader()
        self._generations: dict[int, Generation] = {}
        self._next_id = 1
        self._became_ready: asyncio.Future[ipc.Ready] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._stderr = b""
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._reaper: asyncio.Task[None] | None = None

    @classmethod
    async def spawn(cls, spec: ModelSpec, name: str, clock: Clock, *, temporary: Path) -> Worker:
        """Start the process; it loads its model by itself (see `until_ready`)."""
        worker = cls(spec, name, clock)
        private = Path(tempfile.mkdtemp(prefix="worker-", dir=temporary))
        ours, theirs = socket.socketpair()
        try:
            worker._process = await asyncio.create_subprocess_exec(
                *_command(spec, theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=_environment(private),
            )
        except OSError:
            ours.close()
            shutil.rmtree(private, ignore_errors=True)
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        worker._reaper = asyncio.create_task(worker._reap(private), name=f"reap {name}")
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._stopping

    @property
    def running(self) -> int:
        return len(self._generations)

    async def until_ready(self, timeout: float) -> ipc.Ready:
        """Wait for the model to be loaded. Raises ModelLoadFailed; the worker is then over."""
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._became_ready)
        except TimeoutError:
            self.kill()
            raise ModelLoadFailed(
                f"model '{self.name}' was not loaded within {timeout:g} s", retry_after=10.0
            ) from None

    async def generate(self, order: Order) -> AsyncGenerator[Burst, None]:
        """Run one generation. Leaving the iterator early cancels it, and waits for that.

        Raises what went wrong: InvalidRequest, WorkerCrashed, WorkerStalled, DeadlineExceeded.
        """
        if self._transport is None or self._stopping:
            raise self._crashed()
        frame = self._frame_of(order, self._next_id)
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

    async def stop(self, grace: float) -> None:
        """Ask the process to end, then SIGTERM its group, then SIGKILL it, and wait."""
        self._stopping = True
        if self._transport is not None:
            self._send(ipc.Shutdown())
        if await self._gone(grace):
            return
        self._signal(signal.SIGTERM)
        if await self._gone(grace):
            return
        self.kill()
        await self._gone(grace)

    def kill(self) -> None:
        """SIGKILL the process's whole group."""
        self._stopping = True
        self._signal(signal.SIGKILL)

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
                self.active_bytes = message.active_bytes
                if not self._became_ready.done():
                    self._became_ready.set_result(message)
            case ipc.LoadFailed():
                self._fail_load(message.reason)
            case ipc.Pong():
                self.step = message.step
                self.active_bytes = message.active_bytes

    def _deliver(self, output: ipc.Output) -> None:
        self.step = output.step
        self.active_bytes = output.active_bytes or self.active_bytes
        self._pulse.at = self._clock.monotonic()
        for id in output.begun:
            if id in self._generations:
                self._generations[id].begun()
        for piece in output.pieces:
            generation = self._generations.get(piece.id)
            if generation is not None:
                generation.take(piece)

    def _frame_of(self, order: Order, id: int) -> bytes:
        """Raises InvalidRequest for values that no message can carry."""
        try:
            return ipc.encode(
                ipc.Generate(id, order.request, order.sampling, order.max_prompt, order.max_output)
            )
        except ipc.Unsendable as error:
            raise InvalidRequest(f"the request holds an unusable value: {error}") from error

    def _send(self, message: ipc.Down) -> None:
        if self._transport is not None:
            self._transport.write(ipc.encode(message))

    async def _settle(self, generation: Generation) -> None:
        """A generation that was left before its end is cancelled; an unheard cancel is a wedge."""
        try:
            if not generation.ended and self._transport is not None:
                self._send(ipc.Cancel(generation.id))
                if not await generation.until_ended(generation.limits.cancel_ack):
                    log.error("worker %s does not answer a cancel: killed", self.name)
                    self.kill()
        finally:
            del self._generations[generation.id]

    async def _reap(self, private: Path) -> None:
        """Runs for the life of the process: collects its stderr, its status, and what it leaves."""
        assert self._process is not None
        stderr = asyncio.create_task(self._collect_stderr(), name=f"stderr {self.name}")
        status = await self._process.wait()
        self._signal(signal.SIGKILL)
        await stderr
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if status != 0 and not self._stopping:
            log.error(
                "worker %s ended with status %s\n%s",
                self.name,
                status,
                self._stderr.decode("utf-8", "replace"),
            )
        self._fail_load("its worker ended before the model was loaded")
        for generation in list(self._generations.values()):
            generation.fail(self._crashed())
        await asyncio.to_thread(shutil.rmtree, private, ignore_errors=True)

    async def _collect_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with contextlib.suppress(ConnectionError):
            while chunk := await self._process.stderr.read(_STDERR_TAIL):
                self._stderr = (self._stderr + chunk)[-_STDERR_TAIL:]

    def _fail_load(self, reason: str) -> None:
        if not self._became_ready.done():
            self._became_ready.set_exception(
                ModelLoadFailed(f"model '{self.name}' could not be loaded: {reason}")
            )
            self._became_ready.exception()

    def _crashed(self) -> WorkerCrashed:
        return WorkerCrashed(
            f"the engine process of model '{self.name}' ended; the next request starts a new one",
            retry_after=2.0,
        )

    async def _gone(self, timeout: float) -> bool:
        assert self._reaper is not None
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._reaper)
        except TimeoutError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group: the worker leads a session of its own."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _command(spec: ModelSpec, fd: int) -> list[str]:
    return [
        sys.executable, "-m", "mlxd.worker",
        "--fd", str(fd), "--model", spec.path, "--context", str(spec.context),
    ]  # fmt: skip


def _environment(private: Path) -> dict[str, str]:
    """The daemon's, but for what would let a worker out: service sockets, hubs, a shared TMPDIR.

    MLX on CPU compiles kernels into TMPDIR under names that anybody can predict.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"}
    }
    return kept | {
        "TMPDIR": str(private),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
