"""What stays in memory: leases, loads and idle time.

A leased model is never evicted. Who has to leave for whom is decided in eviction.py and done in
room.py; here is who uses what, and until when.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace

from mlxd.control.fit import FitReport
from mlxd.control.fitting import Fitting
from mlxd.control.forecasting import ByWeight, Forecaster
from mlxd.control.inventory import Inventory
from mlxd.control.load_progress import STARTS, WAITS, LoadProgress, backing_off
from mlxd.control.loading import Check, Loads
from mlxd.control.memory import MemoryReading
from mlxd.control.predecessors import Predecessors
from mlxd.control.resident import Evicts, Load, Resident, ttl_of
from mlxd.control.room import Evicted, Room
from mlxd.control.succession import Succession
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import InsufficientMemory, MlxdError, ModelsBusy
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

_UNLOAD_GRACE_SECONDS = 5.0
_TOLD_SECONDS = 1.0
"""Behind its last request a worker has told by then that a busy time is over, if one was."""


class Lease:
    """The right to have a model in memory, whatever becomes of its workers."""

    def __init__(
        self,
        find: Callable[[], Awaitable[Worker]],
        load: Load | None = None,
        waits: Callable[[], MlxdError | None] = lambda: None,
        digest: str = "",
    ) -> None:
        self.load = load
        """How the model came into memory for it; None: it was there."""
        self.waits = waits
        """Why the load of its next worker has not begun; None: it has."""
        self.digest = digest
        """Of the files that its model computes by, when it was leased; empty: not known."""
        self._find = find

    async def worker(self) -> Worker:
        """The one that serves, started where there is none. Raises what leasing raises."""
        return await self._find()


class Residency:
    """Leases models; loads them when they are not there."""

    def __init__(
        self,
        supervisor: Supervisor,
        clock: Clock,
        read_memory: Callable[[], MemoryReading | None],
        forecasts: Forecaster | None = None,
        *,
        policies: PolicySet | None = None,
        check: Check | None = None,
        predecessors: Predecessors | None = None,
        returns_late: bool = True,
    ) -> None:
        """`policies` are those in force until `apply` is called.

        `check` looks at a model's files once more before they are loaded. `returns_late`:
        whether memory may be missing after the end of who held it (memory.py).
        """
        self.on_memory_error: Callable[[str], None] | None = None
        """Told the name of a model whose worker ended because its engine found no memory."""
        self.on_work: Callable[[], None] | None = None
        """Called when a load or a generation begins or ends."""
        self.calm: Callable[[], bool] = lambda: False
        """True while no worker may count as stalled."""
        self._supervisor = supervisor
        self._clock = clock
        self._forecasts = forecasts or ByWeight()
        self._policies = policies
        """Those in force; where nobody has told them, those of who asked first."""
        self._inventory = Inventory(supervisor, clock, read_memory, self._forecasts)
        self._room = Room(
            self._inventory, supervisor, clock, self._in_force, returns_late=returns_late
        )
        self._loads = Loads(
            self._inventory, self._room, supervisor, clock, self._forecasts,
            prepare=self._prepare, left=self._used, check=check,
            predecessors=predecessors or Predecessors(),
        )  # fmt: skip
        self._tasks: set[asyncio.Task[object]] = set()
        self._trimming: asyncio.TimerHandle | None = None
        self._offering: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def lease(
        self, card: ModelCard, keep_alive: float | None, policies: PolicySet
    ) -> AsyncIterator[Lease]:
        """Hold a model in memory for the length of the block, loading it first if need be.

        When its worker dies its place is kept for the next one. `keep_alive` replaces the model's
        present value; None leaves it. Raises ModelLoadFailed, ModelsBusy, InsufficientMemory.
        """
        served = self.serves(card.spec)
        if not served:
            self._check_blocked(card)
        async with self._held(card, policies, Evicts.IDLE) as resident:
            if keep_alive is not None:
                resident.asked = keep_alive
            resident.use_count += 1
            load = None if served else resident.load
            yield Lease(
                lambda: self._loads.worker_of(resident, policies, Evicts.IDLE),
                load,
                lambda: resident.waits,
                resident.card.digest,
            )

    def _check_blocked(self, card: ModelCard) -> None:
        """Whoever comes while loads are blocked waits for none that has no room yet."""
        known = self._inventory.residents.get(card.spec)
        if self._room.blocked is not None and not (known is not None and known.reserved):
            raise copy(self._room.blocked)

    async def load(self, card: ModelCard, policies: PolicySet, evicts: Evicts) -> None:
        """Have a model in memory that no client asked for. Raises what leasing raises."""
        if not self.serves(card.spec):
            async with self._held(card, policies, evicts):
                pass

    def unload(self, card: ModelCard) -> None:
        """Unload as soon as nothing uses it; running requests finish first."""
        resident = self._inventory.residents.get(card.spec)
        if resident is not None:
            resident.asked = 0.0
            self._rearm(resident)

    def apply(self, new: PolicySet) -> None:
        """Idle times, bounds and budgets follow `new`; what is in use goes on."""
        self._policies = new
        for resident in [*self._inventory.residents.values()]:
            resident.ttl = ttl_of(resident.card, new)
            self._rearm(resident)
            worker = self.worker_of(resident)
            if worker is not None and not resident.reserved:
                self._room.settle(resident, worker, idle=resident.leases == 0)
        self._room.lender.lend()
        self._trim()
        self._changed()

    def refresh(self, same: PolicySet) -> None:
        """The same values in other places: what is told from now on names those."""
        self._policies = same

    def protect(self, preloaded: frozenset[ModelSpec]) -> None:
        """These, and no others, do not idle out and are evicted last. Loads nothing."""
        changed = preloaded ^ self._inventory.preloaded
        self._inventory.preloaded = preloaded
        for spec in changed & self._inventory.residents.keys():
            self._rearm(self._inventory.residents[spec])
        self._changed()

    def rename(self, cards: Iterable[ModelCard], policies: PolicySet) -> None:
        """Names were given or taken away: what is in memory is shown by one that leads to it."""
        succession = Succession(cards)
        for resident in self.residents():
            self._call(resident, succession.fate(resident.card).card, policies)

    async def follow(self, cards: Iterable[ModelCard], policies: PolicySet) -> None:
        """Names have come to mean other folders: `cards` are all that there are now.

        What no name leads to any more goes when nothing uses it. Where its name leads elsewhere
        the successor is loaded first, if that evicts nobody; one that cannot be loaded, for how an
        edit has it loaded, takes no place.
        """
        succession = Succession(cards)
        moved: list[tuple[Resident, ModelCard, bool]] = []
        for resident in self.residents():
            fate = succession.fate(resident.card)
            gone = fate.card is None
            self._call(resident, fate.card, policies)
            resident.successor = fate.successor.spec if fate.successor and gone else None
            if fate.successor is not None and self.worker_of(resident) and not resident.leaving:
                moved.append((resident, fate.successor, gone))
            elif gone:
                self._retire(resident)
        for resident, successor, gone in moved:
            if await self._succeeded(resident, successor, policies) and gone:
                self._retire(resident)

    # -- what there is

    def residents(self) -> list[Resident]:
        """The most recently used first."""
        return sorted(self._inventory.residents.values(), key=lambda r: -r.last_used)

    def workers(self) -> list[Worker]:
        """Those whose process lives, loading ones included."""
        return self._supervisor.workers()

    def worker_of(self, resident: Resident) -> Worker | None:
        return self._inventory.worker_of(resident)

    def progress(self, resident: Resident) -> LoadProgress | None:
        """How far its load is; None: none is under way."""
        if resident.loading is None:
            return None
        worker = next((w for w in self.workers() if w.spec == resident.spec), None)
        usual = self._forecasts.load_seconds(resident.card)
        if worker is not None:
            return worker.told.progress(usual)
        if resident.reserved:
            return STARTS
        wait = self._supervisor.wait(resident.spec)
        return backing_off(wait, usual) if wait else WAITS

    def progress_of(self, model: str) -> LoadProgress | None:
        """The same, by a model's own name (ModelCard.original)."""
        loading = (r for r in self.residents() if r.loading and r.card.original == model)
        return next((self.progress(resident) for resident in loading), None)

    def serves(self, spec: ModelSpec) -> bool:
        """Whether it is in memory."""
        return self._supervisor.serving(spec) is not None

    def as_served(self, card: ModelCard) -> ModelCard:
        """By the files that it was loaded from, where it is in memory: now they may be others."""
        resident = self._inventory.residents.get(card.spec)
        if resident is None or resident.card.digest == card.digest or not self.serves(card.spec):
            return card
        return replace(card, digest=resident.card.digest)

    def serves_any(self) -> bool:
        """Whether any model is in memory."""
        return any(map(self.worker_of, self._inventory.residents.values()))

    def excess(self, policies: PolicySet) -> list[Resident]:
        """Idle models that `policies` would have unloaded for their bounds, in order.

        Some of them later, while memory.eviction still spares them.
        """
        return self._inventory.named(self._inventory.plan_excess(policies, math.inf))

    def failed(self, cards: Iterable[ModelCard]) -> dict[str, str]:
        """Of these, the models whose last load failed and would be the same now: why."""
        return self._loads.failed(cards)

    def fit(self, card: ModelCard, policies: PolicySet, context: int | None = None) -> FitReport:
        """Whether a model fits, by the decision that a load of it would be given. Does nothing."""
        now, blocked = self._clock.monotonic(), self._room.blocked
        fitting = Fitting(self._inventory, self._forecasts)
        return fitting.report(card, policies, context, now, blocked)

    def waiting(self) -> dict[str, int]:
        """How many wait for a worker: `memory`, for room or for their turn among loads; `load`, for
        the load itself, or for the time when it may be tried again.
        """
        found = {"load": 0, "memory": 0}
        for resident in self._inventory.residents.values():
            short = isinstance(resident.waits, InsufficientMemory | ModelsBusy)
            found["memory" if short else "load"] += resident.waiting
        return found

    # -- for the guard of memory

    def read_memory(self) -> MemoryReading | None:
        """Memory now, remembered with what models hold for when one of them dies."""
        return self._inventory.read_memory()

    @property
    def before_load(self) -> Callable[[], Awaitable[None]] | None:
        """Awaited before room is made for a load."""
        return self._loads.before

    @before_load.setter
    def before_load(self, hook: Callable[[], Awaitable[None]] | None) -> None:
        self._loads.before = hook

    @property
    def on_evicted(self) -> Evicted | None:
        """Told of each idle model that had to leave."""
        return self._room.on_evicted

    @on_evicted.setter
    def on_evicted(self, hook: Evicted | None) -> None:
        self._room.on_evicted = hook

    def block_loads(self, why: MlxdError | None) -> None:
        """While it is set, loads that have not begun raise it; those for answers whose worker died
        wait for the end of that.
        """
        self._room.blocked = why
        self._changed()

    def lend(self, left: float) -> None:
        """Have workers keep what there is room for of earlier prompts; of that, the part `left`."""
        self._room.lender.lend(left)

    async def relieve(self, enough: Callable[[], bool], *, all: bool = False) -> list[str]:
        """Evict idle models, the longest unused first, until it is enough; says who went.

        `all`: neither memory.eviction.keep nor min_residency spares anyone.
        """
        return await self._room.relieve(enough, all=all)

    def give_up_loads(self) -> None:
        """Cancel what is on its way into memory, under those who wait for it."""
        for resident in self._inventory.residents.values():
            if resident.loading is not None:
                resident.loading.cancel()

    async def close(self, grace: float) -> None:
        """Stop every worker. Nothing may be leased any more."""
        self._room.closing = True
        tasks: list[asyncio.Task[object]] = [*self._tasks]
        if self._trimming is not None:
            self._trimming.cancel()
        if self._offering is not None:
            self._offering.cancel()
        for resident in self._inventory.residents.values():
            resident.disarm()
            if resident.loading is not None:
                resident.loading.cancel()
                tasks.append(resident.loading)
        await self._supervisor.stop_all(grace)
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- leases

    @asynccontextmanager
    async def _held(
        self, card: ModelCard, policies: PolicySet, evicts: Evicts
    ) -> AsyncIterator[Resident]:
        if self._policies is None:
            self._policies = policies
        resident = self._inventory.residents.get(card.spec)
        if resident is None:
            resident = Resident(card, ttl=ttl_of(card, self._policies))
            self._inventory.residents[card.spec] = resident
        resident.leases += 1
        resident.disarm()
        try:
            await self._loads.worker_of(resident, policies, evicts)
            if resident.leases == 1 and resident.grown:  # behind what is sent to it first
                asyncio.get_running_loop().call_soon(self._room.foresee, resident)
            yield resident
        finally:
            resident.leases -= 1
            if resident.leases == 0:
                self._loads.abandon(resident)
            self._used(resident)

    def _in_force(self) -> PolicySet:
        """Built-in defaults before anybody has told or asked."""
        return self._policies if self._policies is not None else load()

    # -- what workers say

    def _prepare(self, worker: Worker) -> None:
        worker.on_need = self._needed
        worker.on_observed = self._observed
        worker.on_end = self._ended
        worker.on_work = self.on_work
        if self.on_work is not None:
            self.on_work()
        worker.calm = self._is_calm

    def _is_calm(self) -> bool:
        return self.calm()

    def _needed(self, worker: Worker, need: ipc.Need) -> None:
        self._own(self._answered(worker, need), f"need of {worker.name}")

    async def _answered(self, worker: Worker, need: ipc.Need) -> None:
        await self._room.answer(worker, need)
        self._look_again()

    async def _offered(self) -> None:
        await self._room.offer()
        self._look_again()

    def _look_again(self) -> None:
        """Have what was denied offered later: other processes do not tell what they give back."""
        if self._offering is not None:
            self._offering.cancel()
            self._offering = None
        later = self._room.next_offer()
        if later is not None and not self._room.closing:
            self._offering = asyncio.get_running_loop().call_later(later, self._offer)

    def _observed(self, worker: Worker, observed: ipc.Observed) -> None:
        """A busy time is over: the worker goes back to its first budget."""
        resident = self._inventory.residents.get(worker.spec)
        if resident is not None and self.worker_of(resident) is worker:
            self._forecasts.observed(resident.card, observed)
            self._room.settle(resident, worker, idle=True)
            self._changed()

    def _ended(self, worker: Worker) -> None:
        if worker.out_of_memory and self.on_memory_error is not None:
            self.on_memory_error(worker.name)
        resident = self._inventory.residents.get(worker.spec)
        if resident is not None and resident.worker is worker:
            self._mourn(resident)
        self._changed()

    def _mourn(self, resident: Resident) -> None:
        """Its worker died and nobody had it leave: others may have what it held once that is seen
        to be free, and its place once nobody waits for the next one.
        """
        expected = self._inventory.expected(resident.spec)
        resident.worker = None
        resident.needs.clear()
        resident.deaths += 1
        resident.remains = expected[1] if expected is not None else 0
        mourned = self._mourned(resident, expected, resident.deaths)
        self._own(mourned, f"memory of {resident.card.name}")

    async def _mourned(
        self, resident: Resident, expected: tuple[float, int] | None, death: int
    ) -> None:
        await self._room.mourn(resident, expected, death)
        if self._inventory.residents.get(resident.spec) is resident and self._is_over(resident):
            self._room.forget(resident)
        self._changed()

    def _changed(self) -> None:
        """There may be room where there was none."""
        self._room.changes.tell()
        if any(resident.needs for resident in self._inventory.residents.values()):
            self._offer()

    def _offer(self) -> None:
        self._own(self._offered(), "offer of memory that was denied")

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

    async def _succeeded(self, old: Resident, card: ModelCard, policies: PolicySet) -> bool:
        """Load what takes a model's place, where there is room beside it. Whether anything does:
        if not now, then with the next request.
        """
        try:
            await self.load(card, policies, Evicts.NOBODY)
        except MlxdError as error:
            held = self._loads.stays(old.card, card)
            when = "stays as it was" if held else "is not replaced before a request needs it"
            log.info("%s %s: %s", card.name, when, error)
            return not held
        log.info("%s is replaced: its name leads to another folder now", card.name)
        new = self._inventory.residents.get(card.spec)
        if new is not None and new.asked is None:
            new.asked = old.asked
            self._rearm(new)
        return True

    def _retire(self, resident: Resident) -> None:
        resident.retired = True
        self._rearm(resident)

    # -- idle time

    def _used(self, resident: Resident) -> None:
        """A lease or a load ended: the idle time starts anew."""
        resident.last_used = self._clock.monotonic()
        resident.last_used_wall = self._clock.wall()
        if self._is_over(resident):
            self._room.forget(resident)
        else:
            self._rearm(resident)
        if resident.ahead and not resident.leases:
            asyncio.get_running_loop().call_later(_TOLD_SECONDS, self._recede, resident)
        self._trim()
        self._changed()

    def _recede(self, resident: Resident) -> None:
        """A lease in which nothing ran leaves no more of a promise than others do."""
        worker = self.worker_of(resident)
        known = self._inventory.residents.get(resident.spec) is resident
        if known and worker is not None and resident.ahead and not resident.leases:
            self._room.settle(resident, worker, idle=True)
            self._changed()

    def _is_over(self, resident: Resident) -> bool:
        """It is not in memory, and nobody waits for that. One that dies is still there."""
        wanted = resident.leases > 0 or resident.loading is not None or resident.remains
        dies = resident.worker is not None and resident.worker.exit is None
        return not wanted and not dies and self.worker_of(resident) is None

    def _rearm(self, resident: Resident) -> None:
        """Have it unloaded when its time since the last use is over; now, if it is over already."""
        resident.disarm()
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

    def _may_idle(self, resident: Resident) -> float:
        """Seconds that it may be unused."""
        if resident.retired:
            return 0.0
        if resident.spec in self._inventory.preloaded and not resident.leaving:
            return math.inf
        return resident.keep_alive

    def _expire(self, resident: Resident) -> None:
        self._own(self._unload_idle(resident, resident.turn), f"unload {resident.card.name}")

    async def _unload_idle(self, resident: Resident, turn: int) -> None:
        async with self._room.deciding:
            if resident.turn == turn and self._inventory.residents.get(resident.spec) is resident:
                log.info("unloading %s: idle", resident.card.name)
                await self._room.clear(resident, _UNLOAD_GRACE_SECONDS)
        self._changed()

    def _trim(self) -> None:
        """Have idle models beyond the bounds in force unloaded; the others follow when they may."""
        if self._policies is not None and self.excess(self._policies):
            self._own(self._unload_excess(), "unload models beyond models.max_loaded")

    async def _unload_excess(self) -> None:
        at = await self._room.trim()
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        if at is not None and not self._room.closing:
            loop = asyncio.get_running_loop()
            left = max(0.0, at - self._clock.monotonic())
            self._trimming = loop.call_later(left, self._trim)
        self._changed()

    def _own(self, work: Coroutine[None, None, object], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
