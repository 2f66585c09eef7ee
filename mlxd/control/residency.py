"""What stays in memory: leases, idle time, and the least recently used that makes room.

A leased model is never evicted. Making room and unloading run under one lock, loads side by side
with what they reserved; what was looked at before an await is looked at again after.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mlxd.control.catalog import settings_of
from mlxd.control.eviction import Candidate, plan_eviction
from mlxd.control.memory import MemoryReading
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import InsufficientMemory, ModelLoadFailed, ModelsBusy
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.policy.load import PolicySet

log = logging.getLogger(__name__)

_UNLOAD_GRACE_SECONDS = 5.0


@dataclass(slots=True)
class Resident:
    """One model that is in memory, or on its way there."""

    card: ModelCard
    keep_alive: float
    """Seconds it stays after its last use; inf for ever."""
    leases: int = 0
    use_count: int = 0
    last_used: float = 0.0
    last_used_wall: float = 0.0
    load_seconds: float = 0.0
    loading: asyncio.Task[None] | None = None
    reserved: bool = False
    """Room has been made for it and it is about to take it."""
    expiry: asyncio.TimerHandle | None = None
    expires_wall: float = field(default=math.inf)

    @property
    def spec(self) -> ModelSpec:
        return self.card.spec


class Residency:
    """Leases models; loads them when they are not there."""

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        read_memory: Callable[[], MemoryReading | None],
    ) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._read_memory = read_memory
        self._residents: dict[ModelSpec, Resident] = {}
        self._changing = asyncio.Lock()
        self._unloads: set[asyncio.Task[None]] = set()
        self._failed: dict[str, tuple[str, str]] = {}
        """Name of a model whose last load failed to (digest, reason)."""

    @asynccontextmanager
    async def lease(
        self, card: ModelCard, keep_alive: float | None, policies: PolicySet
    ) -> AsyncIterator[Worker]:
        """Hold a model in memory for the length of the block, loading it first if need be.

        `keep_alive` replaces the model's present value; None leaves it. Raises ModelLoadFailed,
        ModelsBusy, InsufficientMemory.
        """
        resident = self._residents.get(card.spec)
        if resident is None:
            resident = Resident(card, keep_alive=ttl_of(card, policies))
            self._residents[card.spec] = resident
        resident.leases += 1
        if resident.expiry is not None:
            resident.expiry.cancel()
        try:
            worker = await self._loaded(resident, policies)
            if keep_alive is not None:
                resident.keep_alive = keep_alive
            resident.use_count += 1
            yield worker
        finally:
            resident.leases -= 1
            self._used(resident)

    def unload(self, card: ModelCard) -> None:
        """Unload as soon as nothing uses it; running requests finish first."""
        resident = self._residents.get(card.spec)
        if resident is not None:
            resident.keep_alive = 0.0
            if resident.leases == 0:
                self._expire(resident)

    def residents(self) -> list[Resident]:
        """The most recently used first."""
        return sorted(self._residents.values(), key=lambda r: -r.last_used)

    def worker_of(self, resident: Resident) -> Worker | None:
        return self._supervisor.serving(resident.spec)

    def failed(self, cards: Iterable[ModelCard]) -> dict[str, str]:
        """Of these, the models whose last load failed and whose files are still the same: why."""
        return {
            card.name: self._failed[card.name][1]
            for card in cards
            if self._failed.get(card.name, ("", ""))[0] == card.digest
        }

    async def close(self, grace: float) -> None:
        """Stop every worker. Nothing may be leased any more."""
        tasks = [*self._unloads]
        for resident in self._residents.values():
            if resident.expiry is not None:
                resident.expiry.cancel()
            if resident.loading is not None:
                resident.loading.cancel()
                tasks.append(resident.loading)
        await self._supervisor.stop_all(grace)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _loaded(self, resident: Resident, policies: PolicySet) -> Worker:
        """One load serves everyone who waits for it; it goes on when one of them leaves."""
        while (worker := self._supervisor.serving(resident.spec)) is None:
            if resident.loading is None:
                resident.loading = asyncio.create_task(
                    self._load(resident, policies), name=f"load {resident.card.name}"
                )
                resident.loading.add_done_callback(_heard)
            await asyncio.shield(resident.loading)
        return worker

    async def _load(self, resident: Resident, policies: PolicySet) -> None:
        """Room is made under the lock; the load itself is not: others may load meanwhile."""
        limit = float(policies.timeouts.model_load)
        began = self._clock.monotonic()
        card = resident.card
        try:
            async with asyncio.timeout(limit):
                async with self._changing:
                    await self._make_room(resident, policies)
                    resident.reserved = True
                await self._supervisor.start(resident.spec, card.name)
            resident.load_seconds = self._clock.monotonic() - began
            self._failed.pop(card.name, None)
        except TimeoutError:
            error = ModelLoadFailed(
                f"model '{card.name}' was not loaded within {limit:g} s",
                retry_after=10.0,
                policy=policies.line("timeouts.model_load"),
            )
            self._failed[card.name] = (card.digest, error.message)
            raise error from None
        except ModelLoadFailed as error:
            self._failed[card.name] = (card.digest, error.message)
            raise
        finally:
            resident.reserved = False
            resident.loading = None

    async def _make_room(self, incoming: Resident, policies: PolicySet) -> None:
        """Evict what the plan says, one at a time, planning again after each."""
        while True:
            reading = self._read_memory()
            max_loaded = policies.models.max_loaded
            others = [r for r in self._residents.values() if r is not incoming]
            promised = sum(r.card.size_bytes for r in others if r.reserved)
            plan = plan_eviction(
                [self._candidate(r) for r in others if r.reserved or self.worker_of(r)],
                needed_bytes=incoming.card.size_bytes + promised,
                available_bytes=reading.available if reading is not None else None,
                max_loaded=None if max_loaded == "auto" else max_loaded,
            )
            if plan.obstacle:
                raise _refusal(plan.obstacle, incoming.card, reading, policies)
            if not plan.victims:
                return
            victim = next(r for r in others if r.spec == plan.victims[0])
            log.info("evicting %s for %s", victim.card.name, incoming.card.name)
            self._drop(victim)
            await self._supervisor.stop(victim.spec, policies.timeouts.shutdown.term_grace)

    def _drop(self, resident: Resident) -> None:
        if resident.expiry is not None:
            resident.expiry.cancel()
        del self._residents[resident.spec]

    def _candidate(self, resident: Resident) -> Candidate:
        return Candidate(
            key=resident.spec,
            size_bytes=resident.card.size_bytes,
            in_use=resident.leases > 0 or resident.reserved,
            last_used=resident.last_used,
            use_count=resident.use_count,
        )

    def _used(self, resident: Resident) -> None:
        """A lease ended: the idle time starts anew."""
        resident.last_used = self._clock.monotonic()
        resident.last_used_wall = self._clock.wall()
        resident.expires_wall = resident.last_used_wall + resident.keep_alive
        if resident.leases > 0 or self._residents.get(resident.spec) is not resident:
            return
        if self.worker_of(resident) is None and resident.loading is None:
            del self._residents[resident.spec]
        elif resident.keep_alive <= 0:
            self._expire(resident)
        elif resident.keep_alive != math.inf:
            resident.expiry = asyncio.get_running_loop().call_later(
                resident.keep_alive, self._expire, resident
            )

    def _expire(self, resident: Resident) -> None:
        task = asyncio.create_task(self._unload_idle(resident), name=f"unload {resident.card.name}")
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _unload_idle(self, resident: Resident) -> None:
        async with self._changing:
            if resident.leases == 0 and self._residents.get(resident.spec) is resident:
                self._drop(resident)
                log.info("unloading %s: idle", resident.card.name)
                await self._supervisor.stop(resident.spec, _UNLOAD_GRACE_SECONDS)


def _heard(load: asyncio.Task[None]) -> None:
    """Whoever waited for it has its error; when all have left, nobody needs it."""
    if not load.cancelled():
        load.exception()


def ttl_of(card: ModelCard, policies: PolicySet) -> float:
    """Seconds that policy lets this model idle."""
    own = settings_of(card.name, policies)
    ttl = own.ttl if own is not None and own.ttl is not None else policies.models.defaults.ttl
    return float(ttl)


def _refusal(
    obstacle: str, card: ModelCard, reading: MemoryReading | None, policies: PolicySet
) -> InsufficientMemory | ModelsBusy:
    if obstacle == "count":
        return ModelsBusy(
            f"model '{card.name}' cannot be loaded: {policies.models.max_loaded} models are"
            " loaded and all in use",
            retry_after=5.0,
            policy=policies.line("models.max_loaded"),
        )
    available = reading.available if reading is not None else 0
    return InsufficientMemory(
        f"model '{card.name}' needs {card.size_bytes} bytes of memory and {available} are"
        " available; models in use are not evicted",
        retry_after=10.0,
    )
