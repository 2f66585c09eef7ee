"""One slot per model spec: a worker is started when one is needed, and replaced when it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlxd.control.process import UNKNOWN, Known
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import MlxdError
from mlxd.core.models import ModelSpec
from mlxd.ipc import messages as ipc

log = logging.getLogger(__name__)


def _unprepared(worker: Worker) -> None:
    """For those to whom a worker's own words do not matter."""


class Supervisor:
    """Starts and stops workers. Does not decide who is evicted."""

    def __init__(self, clock: Clock, temporary: Path) -> None:
        self._clock = clock
        self._temporary = temporary
        self._workers: dict[ModelSpec, Worker] = {}
        self.on_event: Callable[[str, str, Mapping[str, Any]], object] | None = None
        """Told what becomes of workers: a type of event, a message, data."""

    def serving(self, spec: ModelSpec) -> Worker | None:
        """The worker that can take a request for `spec` now."""
        worker = self._workers.get(spec)
        return worker if worker is not None and worker.alive and worker.ready else None

    def workers(self) -> list[Worker]:
        """Those whose process lives, loading ones included."""
        return [worker for worker in self._workers.values() if worker.alive]

    async def start(
        self,
        spec: ModelSpec,
        name: str,
        budget: ipc.Budget | None = None,
        prepare: Callable[[Worker], None] = _unprepared,
        known: Known = UNKNOWN,
    ) -> Worker:
        """A new worker with its model loaded. Raises ModelLoadFailed; cancelled, it leaves nothing.

        `prepare` is shown the worker before its first message. The caller sees to it that one spec
        is not started twice at once.
        """
        old = self._workers.pop(spec, None)
        if old is not None:
            old.kill()
        began = self._clock.monotonic()
        worker = await Worker.spawn(
            spec, name, self._clock, temporary=self._temporary, budget=budget, known=known
        )
        prepare(worker)
        worker.on_end = partial(self._ended, worker.on_end)
        self._workers[spec] = worker
        log.info("worker for %s started, pid %s", name, worker.pid)
        try:
            ready = await worker.until_ready()
        except asyncio.CancelledError:
            worker.kill()
            raise
        seconds = round(self._clock.monotonic() - began, 3)
        data = {"model": name, "pid": worker.pid, "load_seconds": seconds}
        self._tell("worker_up", f"the worker of {name} serves, pid {worker.pid}", data)
        data = {"model": name, "seconds": seconds, "bytes": ready.active_bytes}
        self._tell("load", f"{name} loaded in {seconds:.2f} s", data)
        if not ready.batchable:
            log.info("%s cannot be batched: it serves one request at a time", name)
        return worker

    def _tell(self, type: str, words: str, data: Mapping[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(type, words, data)

    def _ended(self, tell_too: Callable[[Worker], None] | None, worker: Worker) -> None:
        if worker.exit is not None:
            data = {
                "model": worker.name, "pid": worker.pid, "reason": worker.exit.reason,
                "status": worker.exit.status, "running": worker.victims, "step": worker.step,
                "memory": worker.memory.active + worker.memory.cache, "stderr": worker.stderr,
            }  # fmt: skip
            words = f"the worker of {worker.name} ended: {worker.exit.reason}"
            self._tell("worker_down", words, data)
        if tell_too is not None:
            tell_too(worker)

    async def stop(self, spec: ModelSpec, grace: float) -> None:
        """Returns when the process is gone."""
        worker = self._workers.pop(spec, None)
        if worker is not None:
            await worker.stop(grace)
            log.info("worker for %s stopped", worker.name)

    async def stop_all(self, grace: float) -> None:
        """Every worker, side by side."""
        workers = list(self._workers.values())
        await asyncio.gather(*(worker.stop(grace) for worker in workers))
        self._workers.clear()

    def kill_all(self) -> None:
        """Every process, now."""
        for worker in self._workers.values():
            worker.kill()

    def fail_all(self, error: MlxdError) -> None:
        """End every generation with `error`."""
        for worker in self._workers.values():
            worker.fail_all(error)
