"""One slot per model spec: a worker is started when one is needed, and replaced when it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

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
        self._workers[spec] = worker
        log.info("worker for %s started, pid %s", name, worker.pid)
        try:
            ready = await worker.until_ready()
        except asyncio.CancelledError:
            worker.kill()
            raise
        log.info("%s loaded in %.2f s", name, self._clock.monotonic() - began)
        if not ready.batchable:
            log.info("%s cannot be batched: it serves one request at a time", name)
        return worker

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
