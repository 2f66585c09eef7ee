"""Loads: one of each model however many wait for it, tried again where that may help."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from copy import copy
from functools import partial

from mlxd.control.faults import blame
from mlxd.control.forecasting import Forecaster
from mlxd.control.inventory import Inventory
from mlxd.control.predecessors import Predecessors
from mlxd.control.process import Known
from mlxd.control.resident import Evicts, Load, Resident
from mlxd.control.room import Room
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock, within
from mlxd.core.errors import MlxdError, ModelLoadFailed, Overloaded
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

_DYING_SECONDS = 5.0
"""How long a killed worker may take to be gone before the next one is started beside it."""

Check = Callable[[ModelCard, PolicySet], Awaitable[ModelCard]]
"""Gives the card by its files as they are now. Raises ModelLoadFailed for files that are not to be
loaded, Overloaded for those that cannot be looked at now.
"""


class Loads:
    """Gives the worker of a resident, starting one when there is none."""

    def __init__(
        self,
        inventory: Inventory,
        room: Room,
        supervisor: Supervisor,
        clock: Clock,
        forecasts: Forecaster,
        *,
        prepare: Callable[[Worker], None],
        left: Callable[[Resident], None],
        predecessors: Predecessors,
        check: Check | None,
    ) -> None:
        """`prepare` is shown each new worker; `left` is told of a load that nobody waited for."""
        self.before: Callable[[], Awaitable[None]] | None = None
        """Awaited before room is made."""
        self._inventory = inventory
        self._room = room
        self._supervisor = supervisor
        self._clock = clock
        self._forecasts = forecasts
        self._prepare = prepare
        self._left = left
        self._predecessors = predecessors
        self._check = check
        self._failed: dict[str, tuple[str, ModelSpec, str]] = {}
        """Name of a model whose last load failed to (digest, how it was loaded, reason)."""

    async def worker_of(self, resident: Resident, policies: PolicySet, evicts: Evicts) -> Worker:
        """One load serves everyone who waits for it; it goes on when one of them leaves.

        Who may evict what is idle is a request: it is refused at once where its engine rests.
        """
        while (worker := self._supervisor.serving(resident.spec)) is None:
            if evicts is Evicts.IDLE:
                with self._supervisor.admitted(resident.card):
                    await self._loaded(resident, policies, evicts)
            else:
                await self._loaded(resident, policies, evicts)
        return worker

    def abandon(self, resident: Resident) -> None:
        """Nobody waits for it any more: what has not begun does not begin."""
        if resident.loading is not None and not resident.reserved:
            resident.loading.cancel()
            self._over(resident)

    def stays(self, old: ModelCard, new: ModelCard) -> bool:
        """Whether `old` is served in place of `new`, which cannot be loaded."""
        return self._predecessors.settled(new).spec == old.spec

    def failed(self, cards: Iterable[ModelCard]) -> dict[str, str]:
        """Of these, the models whose last load failed and would be the same now: why."""
        found = ((card, self._failed.get(card.name)) for card in cards)
        return {
            card.name: failed[2]
            for card, failed in found
            if failed is not None and failed[:2] == (card.digest, card.spec)
        }

    async def _loaded(self, resident: Resident, policies: PolicySet, evicts: Evicts) -> None:
        """Wait for the load under way, or for a new one."""
        if evicts > resident.evicts:
            resident.evicts = evicts
            self._room.changes.tell()
        if resident.loading is None:
            resident.loading = asyncio.create_task(
                self._load(resident, policies), name=f"load {resident.card.name}"
            )
            resident.loading.add_done_callback(_heard)
        resident.waiting += 1
        try:
            await asyncio.shield(resident.loading)
        finally:
            resident.waiting -= 1

    async def _load(self, resident: Resident, policies: PolicySet) -> None:
        """From the wait for room to a worker that serves, within `timeouts.model_load`."""
        card = resident.card
        try:
            with self._supervisor.load_under_way(card):
                async with within(self._clock, float(policies.timeouts.model_load)):
                    await self._attempts(resident, policies)
            self._failed.pop(resident.card.name, None)
            self._predecessors.served(resident.card)
        except TimeoutError:
            self._supervisor.late(card.spec)
            error = by_limit(resident.waits, _late(card, policies))
            self._note(resident.card, error)
            raise error from None
        except ModelLoadFailed as error:
            if error.setting:
                blame(error, error.setting, card, policies)
            self._note(resident.card, error)
            if error.final and not error.of_files:
                self._fall_back(resident.card, error)
            raise
        finally:
            if resident.loading is asyncio.current_task():
                self._over(resident)
                if resident.leases == 0:
                    self._left(resident)

    async def _attempts(self, resident: Resident, policies: PolicySet) -> None:
        """A worker that failed is replaced, with room judged anew; one that said why is not.

        Nor is one that nobody waits for any more, or whose breaker has opened, or whose files are
        no model; but a model that was in memory has answers to go on with, and its folder may be
        back in a moment. Between two attempts is what `models.load.retry` says, or the worker's
        back-off where that is longer.
        """
        retry = policies.models.load.retry
        pause = float(retry.backoff)
        for left in range(retry.max, -1, -1):
            try:
                await self._attempt(resident, policies)
            except ModelLoadFailed as error:
                final = error.final and not (error.of_files and resident.load is not None)
                if not (final or left):
                    error.policy = error.policy or policies.line("models.load.retry.max")
                if final or not left or resident.leases == 0:
                    raise
                self._supervisor.check(resident.card)
                log.warning("%s; another attempt in %g s or later", error.message, pause)
                resident.waits = error
            else:
                return
            await asyncio.sleep(pause)
            pause *= 2

    async def _attempt(self, resident: Resident, policies: PolicySet) -> None:
        came, earlier = self._clock.monotonic(), resident.waits
        resident.put_off, resident.evicted = None, ()
        await self._supervisor.turn(resident.card, partial(_waits, resident))
        resident.waits = earlier
        if self.before is not None:
            await self.before()
        await self._look_at_files(resident, policies)
        if resident.worker is not None:
            await resident.worker.gone(_DYING_SECONDS)
        await self._room.reserve(resident)
        resident.remains = None
        began = self._clock.monotonic()
        try:
            worker = await self._supervisor.start(
                resident.card,
                resident.budget,
                self._prepare,
                self._known(resident.card),
            )
            resident.worker = worker
            resident.loaded_at = self._clock.monotonic()
            resident.load_seconds = resident.loaded_at - began
            resident.load = Load(
                began - came, resident.load_seconds, resident.put_off, resident.evicted,
                worker.spare,
            )  # fmt: skip
            self._learn(resident, worker)
        finally:
            resident.reserved = False
            self._room.lender.lend()
            self._room.changes.tell()

    async def _look_at_files(self, resident: Resident, policies: PolicySet) -> None:
        """Have its card say what they are now, whatever edits have changed of it meanwhile. Raises
        ModelLoadFailed. What cannot be looked at now may be with the next attempt: there may be
        answers under way that wait for this load.
        """
        if self._check is None:
            return
        try:
            while True:
                card = resident.card
                now = await self._check(card, policies)
                if resident.card is card:
                    resident.card = now
                    return
        except Overloaded as error:
            raise ModelLoadFailed(
                error.message,
                retry_after=error.retry_after,
                policy=error.policy,
                would_pass=error.would_pass,
            ) from error

    def _known(self, card: ModelCard) -> Known:
        measured = self._forecasts.measured(card)
        if measured is not None:
            return Known(measured, measured=True)
        return Known(self._forecasts.footprint(card))

    def _learn(self, resident: Resident, worker: Worker) -> None:
        if worker.ready is not None:
            self._forecasts.loaded(resident.card, worker.ready)
            self._inventory.working_set = (
                worker.ready.working_set_bytes or self._inventory.working_set
            )
        self._room.settle(resident, worker, idle=True)

    def _over(self, resident: Resident) -> None:
        resident.loading = None
        resident.evicts = Evicts.NOBODY
        resident.waits = None
        resident.short_since = None

    def _fall_back(self, card: ModelCard, error: MlxdError) -> None:
        """What was served before an edit stays, where that is what cannot be loaded."""
        before = self._predecessors.refuse(card, error.explained())
        if before is None:
            return
        self._supervisor.forget(card.spec)
        if (resident := self._inventory.residents.get(before.spec)) is not None:
            resident.retired = False

    def _note(self, card: ModelCard, error: MlxdError) -> None:
        if isinstance(error, ModelLoadFailed) and not error.of_files:
            self._failed[card.name] = (card.digest, card.spec, error.message)


def _waits(resident: Resident, why: MlxdError) -> None:
    """A reason of its own stays: it says more."""
    resident.waits = resident.waits or why
    resident.put_off = resident.put_off or why


def by_limit(why: MlxdError | None, late: MlxdError) -> MlxdError:
    """What those are told whose time is over: why they waited, and by which limit it is over."""
    if why is None:
        return late
    told = copy(why)
    told.policy = told.policy or late.policy
    told.numbers = {**late.numbers, **told.numbers}
    told.would_pass = told.would_pass or late.would_pass
    return told


def _late(card: ModelCard, policies: PolicySet) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"model '{card.name}' was not loaded within {float(policies.timeouts.model_load):g} s",
        retry_after=10.0,
        policy=policies.line("timeouts.model_load"),
        numbers={"limit_seconds": float(policies.timeouts.model_load)},
        would_pass="the same request once the model is loaded, or a longer limit",
    )


def _heard(load: asyncio.Task[None]) -> None:
    """Whoever waited for it has its error; when all have left, nobody needs it."""
    if not load.cancelled():
        load.exception()
