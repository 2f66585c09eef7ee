"""One slot per model spec: a worker is started when one is needed and may be, and replaced when it
is gone. What became of each is counted, told, and decides when the next is started.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mlxd.control import resting
from mlxd.control.breaker import REFUSED, RESTING, State
from mlxd.control.changes import Changes
from mlxd.control.prefixes import PrefixWishes
from mlxd.control.process import UNKNOWN, Known, protocol_of_fresh
from mlxd.control.slot import Slot
from mlxd.control.tuning import tuning_of
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.counts import plural
from mlxd.core.errors import InsufficientMemory, MlxdError, ModelLoadFailed
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet
from mlxd.policy.schema.supervision import Worker as WorkerPolicy

log = logging.getLogger(__name__)

_CLEARING_SECONDS = 1.0
"""How long the daemon's end waits for folders of workers to be removed."""
_AGAIN_SECONDS = 10.0
"""An upgrade that is under way is soon over."""


class Counts(Protocol):
    """What is counted."""

    def worker_exited(self, model: str, reason: str) -> None: ...
    def worker_restarted(self, model: str) -> None: ...


def _unprepared(worker: Worker) -> None:
    """For those to whom a worker's own words do not matter."""


def _unheard(type: str, message: str, data: Mapping[str, Any]) -> object:
    """For those who keep no events."""


def _unchanged() -> str:
    """For those who start no process."""
    return ""


def _unspared() -> bool:
    """For those who keep no processes."""
    return False


class Supervisor:
    """Starts and stops workers. Does not decide who is evicted."""

    def __init__(
        self,
        clock: Clock,
        temporary: Path,
        policies: PolicySet,
        *,
        counts: Counts,
        prefixes: PrefixWishes,
        spawn: Callable[..., Any] = Worker.spawn,
        installed: Callable[[], str] = _unchanged,
        spared: Callable[[], bool] = _unspared,
    ) -> None:
        """`installed`: what has become of the files that workers are started from, for people.
        `spared`: whether the next load needs none of them.
        """
        self.on_event: Callable[[str, str, Mapping[str, Any]], object] = _unheard
        """Told what was decided: its type, a line for people, the numbers."""
        self.changes = Changes()
        """Told when a slot may be in another state than before."""
        self._clock = clock
        self._temporary = temporary
        self._policies = policies
        self._counts = counts
        self.prefixes = prefixes
        """What is to be kept of earlier prompts."""
        self._spawn = spawn
        self._installed = installed
        self._spared = spared
        self._slots: dict[ModelSpec, Slot] = {}
        self._held: set[ModelSpec] = set()
        """Those whose answers grammars have held."""
        self._unfinished: dict[ModelSpec, Worker] = {}
        """Workers whose start was given up."""
        self._ending: set[Worker] = set()
        """Those that were told to end, or end of themselves, and may take their time."""

    def apply(self, new: PolicySet) -> None:
        """Waits and limits follow `new`; what has happened is remembered."""
        self._policies = new
        self.prefixes.apply(new)
        for slot in self.slots():
            if slot.worker is not None and slot.worker.alive:
                slot.worker.tune(tuning_of(new))
                self.prefixes.tell(slot.worker, slot.card)
        self.changes.tell()

    def refresh(self, same: PolicySet) -> None:
        """The same values in other places: what is told from now on names those."""
        self._policies = same

    # -- what there is

    def serving(self, spec: ModelSpec) -> Worker | None:
        """The worker that can take a request for `spec` now."""
        slot = self._slots.get(spec)
        return slot.serving if slot is not None else None

    def wait(self, spec: ModelSpec) -> float:
        """Seconds to the next start of one whose worker failed; 0: it may be started now."""
        slot = self._slots.get(spec)
        return slot.wait if slot is not None else 0.0

    def workers(self) -> list[Worker]:
        """Those whose process lives, loading ones included."""
        return [slot.worker for slot in self._slots.values() if slot.worker and slot.worker.alive]

    def slots(self) -> list[Slot]:
        """One for each model that was ever asked for in its present way of loading."""
        return list(self._slots.values())

    # -- who may start what

    @contextmanager
    def admitted(self, card: ModelCard) -> Iterator[None]:
        """Around a request's wait for a worker. Raises BreakerOpen, or why a load failed for good.

        A few requests at a time may wait for a probe.
        """
        slot = self._slot(card)
        if slot.state is not State.PROBING:
            self.check(card)
            yield
            return
        if slot.joined >= self._worker_policy().breaker.half_open_probes:
            raise resting.full(slot, self._policies)
        slot.joined += 1
        try:
            yield
        finally:
            slot.joined -= 1

    def check(self, card: ModelCard) -> None:
        """Raises what `admitted` raises while no probe is under way."""
        if (error := resting.refusal(self._slot(card), self._policies)) is not None:
            raise error

    async def turn(self, card: ModelCard, waits: Callable[[MlxdError], None]) -> None:
        """Wait until a worker may be started; `waits` is told why it may not yet.

        Raises what `check` raises; ModelLoadFailed where no worker would come of the files as they
        are: nobody makes room for that.
        """
        while True:
            self.check(card)
            slot = self._slot(card)
            if slot.next_start is None:
                self._check_files(card)
                return
            waits(resting.backing_off(slot))
            await self.changes.wait(slot.wait)

    def _check_files(self, card: ModelCard) -> None:
        change = self._installed()
        if not change or self._spared():
            return
        try:
            if protocol_of_fresh() in (None, ipc.PROTOCOL):
                return
            why, final = f"its worker would be of another mlxd; {change}", True
        except OSError:
            why, final = change, False
        error = ModelLoadFailed(
            f"model '{card.name}' could not be loaded: {why}",
            retry_after=_AGAIN_SECONDS,
            would_pass="the same request once the daemon is restarted",
        )
        error.final = final
        raise error

    def probe(self, slot: Slot) -> None:
        """The next start of an open slot is its probe."""
        slot.probe()
        self._look(slot)

    def end_probe(self, slot: Slot) -> None:
        """A probe that was not made, for want of room or such, is none: the next is `open` away.

        Nor is one whose worker serves and had no memory for a token.
        """
        slot.put_off()
        self._look(slot)

    def reset(self, spec: ModelSpec) -> bool:
        """Forget a slot's failures: it may start at once. False: there was nothing to forget."""
        slot = self._slots.get(spec)
        if slot is None or (slot.state not in RESTING and not slot.failures):
            return False
        slot.reset()
        self._look(slot)
        return True

    def forget(self, spec: ModelSpec) -> None:
        """No name leads to it any more: what failed of it is neither told nor probed."""
        slot = self._slots.get(spec)
        if slot is None or slot.serving is not None or slot.loads:
            return
        del self._slots[spec]
        if slot.worker is not None and slot.alive:
            self._ending.add(slot.worker)

    def look(self) -> None:
        """Tell of what has changed by the passing of time alone."""
        for slot in self.slots():
            self._look(slot)

    # -- starts

    @contextmanager
    def load_under_way(self, card: ModelCard) -> Iterator[None]:
        """Around a load, from its wait for a turn to a worker that serves: its slot stays."""
        slot = self._slot(card)
        slot.load_begins()
        try:
            yield
        finally:
            slot.load_ended()

    async def start(
        self,
        card: ModelCard,
        budget: ipc.Budget | None = None,
        prepare: Callable[[Worker], None] = _unprepared,
        known: Known = UNKNOWN,
    ) -> Worker:
        """A new worker with its model loaded that has made a token. Raises ModelLoadFailed;
        cancelled, it leaves nothing.

        `prepare` is shown the worker before its first message. The caller has waited for its
        `turn`, and sees to it that one spec is not started twice at once.
        """
        spec, name = card.spec, card.name
        slot, began = self._slot(card), self._clock.monotonic()
        slot.card = card
        self._begin(slot)
        worker: Worker | None = None
        known = replace(known, held=spec in self._held, prefixes=self.prefixes.files(card))
        try:
            worker = await self._spawn(
                spec, name, self._clock, temporary=self._temporary, budget=budget, known=known
            )
            log.info("worker for %s started, pid %s", name, worker.pid)
            slot.worker = worker
            prepare(worker)
            worker.tune(tuning_of(self._policies))
            self.prefixes.tell(worker, card)
            worker.on_grammar = partial(self._held.add, spec)
            worker.on_token = partial(self._delivered, slot)
            worker.on_end = partial(self._ended, slot, worker.on_end)
            stall = float(self._policies.timeouts.inter_token_stall)
            ready = await worker.until_ready(stall)
            await self._try(slot, worker)
        except asyncio.CancelledError:
            if worker is not None:
                self._unfinished[spec] = worker
                worker.kill()
            slot.gone()
            raise
        except ModelLoadFailed as error:
            if change := self._installed():
                error.message = f"{error.message}; {change}"
            if worker is None or worker.exit is None or not worker.exit.asked:
                self._failed(slot, worker, _reason(error, name), error)
            raise
        self._serve(slot, worker, ready, self._clock.monotonic() - began)
        return worker

    def late(self, spec: ModelSpec) -> None:
        """A start was given up because it took too long: it failed."""
        worker, slot = self._unfinished.pop(spec, None), self._slots.get(spec)
        if worker is not None and slot is not None:
            self._failed(slot, worker, "it was not loaded in time")

    async def stop(self, spec: ModelSpec, grace: float) -> None:
        """Returns when the process is gone."""
        slot = self._slots.get(spec)
        if slot is None:
            return
        slot.lost = False
        worker = slot.worker
        if worker is not None:
            slot.gone()
            await self._end(worker, grace)
            log.info("worker for %s stopped", worker.name)

    async def stop_all(self, grace: float) -> None:
        """Every worker, side by side, with what it leaves on disk."""
        workers = [slot.worker for slot in self._slots.values() if slot.worker is not None]
        await asyncio.gather(*(self._end(worker, grace) for worker in workers))
        await asyncio.gather(*(worker.cleared(_CLEARING_SECONDS) for worker in workers))
        for slot in self._slots.values():
            slot.gone()

    def kill_all(self) -> None:
        """Every process, now; whoever was told to end has no more time for it."""
        for worker in {*self.workers(), *self._ending}:
            worker.kill()

    def fail_all(self, error: MlxdError) -> None:
        """End every generation with `error`."""
        for worker in self.workers():
            worker.fail_all(error)

    # -- inside

    async def _end(self, worker: Worker, grace: float) -> None:
        self._ending.add(worker)
        try:
            await worker.stop(grace)
        finally:
            self._ending.discard(worker)

    def _worker_policy(self) -> WorkerPolicy:
        return self._policies.supervision.worker

    def _slot(self, card: ModelCard) -> Slot:
        """The slot of a card; made anew where its files, or its way of loading, have changed."""
        slot = self._slots.get(card.spec)
        if slot is not None and (slot.busy or slot.card.digest == card.digest):
            return slot
        for other in self.slots():
            if other.name == card.name and not other.busy:
                del self._slots[other.spec]
        slot = self._slots[card.spec] = Slot(card, self._clock, self._worker_policy)
        return slot

    def _begin(self, slot: Slot) -> None:
        """Whatever is left of the worker before is in nobody's way."""
        if slot.worker is not None:
            slot.worker.kill()
        attempt, after = max(1, slot.failures), slot.since_failure
        if slot.started():
            self._counts.worker_restarted(slot.name)
            data = {"model": slot.name, "failures": attempt, "after": round(after, 3)}
            self.on_event("restart", f"{slot.name} is started again", data)
        self._look(slot)

    async def _try(self, slot: Slot, worker: Worker) -> None:
        """Have it make one token. Raises ModelLoadFailed; the worker is then over.

        It is a part of the load, and has as long. Nobody can make room for it before it serves:
        what needs more memory than it has is refused there, and says nothing against it.
        """
        on_need, worker.on_need = worker.on_need, None
        timeouts = self._policies.timeouts
        canary = asyncio.create_task(
            worker.canary(float(timeouts.model_load), float(timeouts.inter_token_stall))
        )
        try:
            await asyncio.shield(canary)  # cancelled, it would wait for the worker's word
            slot.delivered()
        except asyncio.CancelledError:
            canary.cancel()
            raise
        except MlxdError as error:
            if worker.alive and isinstance(error.__cause__, InsufficientMemory):
                return
            if worker.alive:
                worker.condemn("canary")
            raise ModelLoadFailed(
                f"model '{slot.name}' could not be loaded: it makes no token: {error.message}",
                retry_after=10.0,
                would_pass="the same request once another worker of it makes tokens",
            ) from error
        finally:
            worker.on_need = on_need

    def _serve(self, slot: Slot, worker: Worker, ready: ipc.Ready, seconds: float) -> None:
        slot.well()
        name, seconds = slot.name, round(seconds, 3)
        log.info("%s loaded in %.2f s", name, seconds)
        if not ready.batchable:
            log.info("%s cannot be batched: its requests take turns", name)
        if ready.draft_refused:
            self.on_event(
                "undrafted",
                f"no model drafts for {name}: {ready.draft_refused}",
                {"model": name, "reason": ready.draft_refused},
            )
        self.on_event(
            "load",
            f"{name} is loaded",
            {"model": name, "seconds": seconds, "bytes": worker.memory.active},
        )
        self.on_event(
            "worker_up",
            f"the engine of {name} serves",
            {"model": name, "pid": worker.pid, "load_seconds": seconds, "spare": worker.spare},
        )
        self._look(slot)

    def _delivered(self, slot: Slot, worker: Worker) -> None:
        if slot.serving is worker:
            slot.delivered()
            self._look(slot)

    def _ended(self, slot: Slot, then: Callable[[Worker], None] | None, worker: Worker) -> None:
        """The worker's process is gone; `then` is what else is to be told of it."""
        self._ending.discard(worker)
        if worker.exit is not None:
            self._counts.worker_exited(slot.name, worker.exit.reason)
            self.on_event(
                "worker_down",
                f"the engine of {slot.name} ended: {worker.exit.reason}",
                _end_of(slot, worker),
            )
            if not worker.exit.asked:
                self._failed(slot, worker, worker.exit.reason)
        if slot.worker is worker:
            slot.gone()
        self._look(slot)
        if then is not None:
            then(worker)

    def _failed(
        self, slot: Slot, worker: Worker | None, reason: str, error: ModelLoadFailed | None = None
    ) -> None:
        """Count an end or a failed start once, whoever tells of it first."""
        slot.failed(worker, reason)
        if error is not None and error.final:
            slot.final = error
        self._look(slot)

    def _look(self, slot: Slot) -> None:
        """Tell of a breaker that opened, is tried, closed or gave up."""
        before, now = slot.told, slot.state
        slot.told = now
        if before is not now and REFUSED & {before, now}:
            next_start = round(slot.wait, 3) if slot.next_start is not None else None
            log.log(
                logging.INFO if now not in REFUSED else logging.WARNING,
                "the breaker of %s: %s, was %s, %s",
                slot.name, now, before, plural(slot.failures, "failure"),
            )  # fmt: skip
            self.on_event(
                "breaker",
                resting.words_of(slot) or f"the breaker of {slot.name} is closed",
                {
                    "model": slot.name,
                    "from": str(before),
                    "to": str(now),
                    "failures": slot.failures,
                    "next": next_start,
                },
            )
        self.changes.tell()


def _end_of(slot: Slot, worker: Worker) -> dict[str, Any]:
    exit = worker.exit
    return {
        "model": slot.name,
        "pid": worker.pid,
        "reason": exit.reason if exit is not None else "",
        "status": exit.status if exit is not None else None,
        "running": worker.victims,
        "step": worker.step,
        "memory": worker.memory.active + worker.memory.cache,
        "stderr": worker.stderr,
    }


def _reason(error: ModelLoadFailed, name: str) -> str:
    """Without the words that every failed load begins with."""
    return error.message.removeprefix(f"model '{name}' could not be loaded: ")
