"""What stays in memory: leases, idle time, and the least recently used that makes room.

A leased model is never evicted. Making room and unloading run under one lock, loads side by side
with what they reserved; what was looked at before an await is looked at again after.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from copy import copy

from mlxd.control.eviction import Candidate, plan_eviction, plan_trim
from mlxd.control.memory import MemoryReading
from mlxd.control.resident import Evicts, Resident, ttl_of
from mlxd.control.succession import Succession
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import InsufficientMemory, MlxdError, ModelLoadFailed, ModelsBusy
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.policy.load import PolicySet

__all__ = ["Residency", "Resident"]

log = logging.getLogger(__name__)

_UNLOAD_GRACE_SECONDS = 5.0


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
        self._policies: PolicySet | None = None
        """Those in force, once `apply` was called; until then a request's own."""
        self._preloaded: frozenset[ModelSpec] = frozenset()
        self._residents: dict[ModelSpec, Resident] = {}
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._blocked: MlxdError | None = None
        self.before_load: Callable[[], Awaitable[None]] | None = None
        self.on_memory_error: Callable[[str], None] | None = None
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
        async with self._held(card, policies, Evicts.IDLE) as (resident, worker):
            if keep_alive is not None:
                resident.asked = keep_alive
            resident.use_count += 1
            yield worker

    async def load(self, card: ModelCard, policies: PolicySet, evicts: Evicts) -> None:
        """Have a model in memory that no client asked for. Raises what leasing raises."""
        if not self.serves(card.spec):
            async with self._held(card, policies, evicts):
                pass

    def unload(self, card: ModelCard) -> None:
        """Unload as soon as nothing uses it; running requests finish first."""
        resident = self._residents.get(card.spec)
        if resident is not None:
            resident.asked = 0.0
            self._rearm(resident)

    def apply(self, new: PolicySet) -> None:
        """Idle times and the number of idle models follow `new`; what is in use goes on."""
        self._policies = new
        for resident in self._residents.values():
            resident.ttl = ttl_of(resident.card, new)
            self._rearm(resident)
        self._trim()

    def protect(self, preloaded: frozenset[ModelSpec]) -> None:
        """These, and no others, do not idle out and are evicted last. Loads nothing."""
        changed = preloaded ^ self._preloaded
        self._preloaded = preloaded
        for spec in changed & self._residents.keys():
            self._rearm(self._residents[spec])

    async def follow(self, cards: Iterable[ModelCard], policies: PolicySet) -> None:
        """Names have come to mean other folders: `cards` are all that there are now.

        What no name leads to any more goes when nothing uses it. Where its name leads elsewhere
        the successor is loaded first, if that evicts nobody.
        """
        succession = Succession(cards)
        moved: list[tuple[Resident, ModelCard, bool]] = []
        for resident in self.residents():
            fate = succession.fate(resident.card)
            gone = fate.card is None
            self._call(resident, fate.card, policies)
            if fate.successor is not None and self.worker_of(resident) and not resident.leaving:
                moved.append((resident, fate.successor, gone))
            elif gone:
                self._retire(resident)
        for resident, successor, gone in moved:
            await self._succeed(resident, successor, policies)
            if gone:
                self._retire(resident)

    def residents(self) -> list[Resident]:
        """The most recently used first."""
        return sorted(self._residents.values(), key=lambda r: -r.last_used)

    def worker_of(self, resident: Resident) -> Worker | None:
        return self._supervisor.serving(resident.spec)

    def serves(self, spec: ModelSpec) -> bool:
        """Whether it is in memory."""
        return self._supervisor.serving(spec) is not None

    def excess(self, policies: PolicySet) -> list[Resident]:
        """Idle models that `policies` would have unloaded for their `max_loaded`, in order."""
        max_loaded = policies.models.max_loaded
        if max_loaded == "auto":
            return []
        loaded = [self._candidate(r) for r in self._present()]
        victims = plan_trim(loaded, max_loaded)
        return [r for key in victims for r in self._residents.values() if r.spec == key]

    def failed(self, cards: Iterable[ModelCard]) -> dict[str, str]:
        """Of these, the models whose last load failed and whose files are still the same: why."""
        return {
            card.name: self._failed[card.name][1]
            for card in cards
            if self._failed.get(card.name, ("", ""))[0] == card.digest
        }

    def block_loads(self, why: MlxdError | None) -> None:
        """While set, new loads raise it; loads under way go on."""
        self._blocked = why

    async def relieve(self, enough: Callable[[], bool], *, all: bool = False) -> list[str]:
        """Evict idle models until `enough()`; returns their names."""
        gone: list[str] = []
        async with self._changing:
            while not enough():
                idle = [r for r in self._present() if not self._candidate(r).in_use]
                keep = 0 if all or self._policies is None else self._policies.memory.eviction.keep
                if not idle or len(self._present()) <= keep:
                    break
                victim = min(idle, key=lambda r: (r.spec in self._preloaded, r.last_used))
                self._drop(victim)
                await self._supervisor.stop(victim.spec, _UNLOAD_GRACE_SECONDS)
                gone.append(victim.card.name)
        return gone

    def workers(self) -> list[Worker]:
        """Living ones."""
        return [w for r in self._residents.values() if (w := self.worker_of(r)) is not None]

    async def close(self, grace: float) -> None:
        """Stop every worker. Nothing may be leased any more."""
        tasks = [*self._tasks]
        for resident in self._residents.values():
            if resident.expiry is not None:
                resident.expiry.cancel()
            if resident.loading is not None:
                resident.loading.cancel()
                tasks.append(resident.loading)
        await self._supervisor.stop_all(grace)
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- loading

    @asynccontextmanager
    async def _held(
        self, card: ModelCard, policies: PolicySet, evicts: Evicts
    ) -> AsyncIterator[tuple[Resident, Worker]]:
        resident = self._residents.get(card.spec)
        if resident is None:
            resident = Resident(card, ttl=ttl_of(card, self._policies or policies))
            self._residents[card.spec] = resident
        resident.leases += 1
        self._disarm(resident)
        try:
            yield resident, await self._loaded(resident, policies, evicts)
        finally:
            resident.leases -= 1
            self._used(resident)

    async def _loaded(self, resident: Resident, policies: PolicySet, evicts: Evicts) -> Worker:
        """One load serves everyone who waits for it; it goes on when one of them leaves."""
        while (worker := self._supervisor.serving(resident.spec)) is None:
            resident.evicts = max(resident.evicts, evicts)
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
                if self.before_load is not None:
                    await self.before_load()
                if self._blocked is not None:
                    raise copy(self._blocked)
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
            resident.evicts = Evicts.NOBODY
            if resident.leases == 0:  # all who waited have left
                self._used(resident)

    async def _make_room(self, incoming: Resident, policies: PolicySet) -> None:
        """Evict what the plan says, one at a time, planning again after each."""
        while True:
            reading = self._read_memory()
            max_loaded = policies.models.max_loaded
            others = [r for r in self._present() if r is not incoming]
            promised = sum(r.card.size_bytes for r in others if r.reserved)
            plan = plan_eviction(
                [self._candidate(r, incoming.evicts) for r in others],
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

    def _present(self) -> list[Resident]:
        """Those that take room in memory, or are about to."""
        return [r for r in self._residents.values() if r.reserved or self.worker_of(r)]

    def _candidate(self, resident: Resident, evicts: Evicts = Evicts.IDLE) -> Candidate:
        preloaded = resident.spec in self._preloaded
        spared = evicts is Evicts.NOBODY or (evicts is Evicts.UNLISTED and preloaded)
        return Candidate(
            key=resident.spec,
            size_bytes=resident.card.size_bytes,
            in_use=resident.leases > 0 or resident.reserved or spared,
            last_used=resident.last_used,
            use_count=resident.use_count,
            preloaded=preloaded,
        )

    # -- another meaning of a name

    def _call(self, resident: Resident, card: ModelCard | None, policies: PolicySet) -> None:
        """Show a model by its present card, unless its files have changed since it was loaded."""
        if card is None:
            return
        if card.digest == resident.card.digest:
            resident.card = card
        resident.ttl = ttl_of(resident.card, self._policies or policies)
        resident.retired = False
        self._rearm(resident)

    async def _succeed(self, old: Resident, card: ModelCard, policies: PolicySet) -> None:
        """Load what takes a model's place, where there is room beside it."""
        try:
            await self.load(card, policies, Evicts.NOBODY)
        except (InsufficientMemory, ModelsBusy, ModelLoadFailed) as error:
            log.info("%s is not replaced before a request needs it: %s", card.name, error)
            return
        log.info("%s is replaced: its name leads to another folder now", card.name)
        new = self._residents.get(card.spec)
        if new is not None and new.asked is None:
            new.asked = old.asked
            self._rearm(new)

    def _retire(self, resident: Resident) -> None:
        resident.retired = True
        self._rearm(resident)

    # -- idle time

    def _used(self, resident: Resident) -> None:
        """A lease or a load ended: the idle time starts anew."""
        resident.last_used = self._clock.monotonic()
        resident.last_used_wall = self._clock.wall()
        if resident.leases == 0 and resident.loading is None and self.worker_of(resident) is None:
            self._drop(resident)
        else:
            self._rearm(resident)
        self._trim()

    def _rearm(self, resident: Resident) -> None:
        """Have it unloaded when its time since the last use is over; now, if it is over already."""
        self._disarm(resident)
        limit = self._may_idle(resident)
        resident.expires_wall = resident.last_used_wall + limit
        if resident.leases > 0 or resident.loading is not None or limit == math.inf:
            return
        left = resident.last_used + limit - self._clock.monotonic()
        if left <= 0:
            self._expire(resident)
        else:
            loop = asyncio.get_running_loop()
            resident.expiry = loop.call_later(left, self._expire, resident)

    def _disarm(self, resident: Resident) -> None:
        resident.turn += 1
        if resident.expiry is not None:
            resident.expiry.cancel()
            resident.expiry = None

    def _may_idle(self, resident: Resident) -> float:
        """Seconds that it may be unused."""
        if resident.retired:
            return 0.0
        if resident.spec in self._preloaded and not resident.leaving:
            return math.inf
        return resident.keep_alive

    def _expire(self, resident: Resident) -> None:
        self._own(self._unload_idle(resident, resident.turn), f"unload {resident.card.name}")

    async def _unload_idle(self, resident: Resident, turn: int) -> None:
        async with self._changing:
            if resident.turn == turn and self._residents.get(resident.spec) is resident:
                self._drop(resident)
                log.info("unloading %s: idle", resident.card.name)
                await self._supervisor.stop(resident.spec, _UNLOAD_GRACE_SECONDS)

    def _trim(self) -> None:
        """Have idle models beyond the limit in force unloaded; those in use follow when idle."""
        if self._policies is not None and self.excess(self._policies):
            self._own(self._unload_excess(), "unload models beyond max_loaded")

    async def _unload_excess(self) -> None:
        async with self._changing:
            while self._policies is not None and (victims := self.excess(self._policies)):
                log.info("unloading %s: models.max_loaded", victims[0].card.name)
                self._drop(victims[0])
                await self._supervisor.stop(victims[0].spec, _UNLOAD_GRACE_SECONDS)

    def _drop(self, resident: Resident) -> None:
        self._disarm(resident)
        del self._residents[resident.spec]

    def _own(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _heard(load: asyncio.Task[None]) -> None:
    """Whoever waited for it has its error; when all have left, nobody needs it."""
    if not load.cancelled():
        load.exception()


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
