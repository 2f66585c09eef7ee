"""Room in memory: made, given away and taken back, one decision at a time.

A decision holds the lock until what it evicts is gone and its bytes are seen to be free again; what
was looked at before an await is looked at again after. Meanwhile a worker gets what it needs if
that is there beside what the eviction is for. Loads themselves run side by side, with what they
were promised.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from copy import copy
from typing import Literal

from msgspec.structs import replace

from mlxd.control.changes import Changes
from mlxd.control.eviction import Obstacle
from mlxd.control.inventory import Inventory
from mlxd.control.judgement import Cause, Judgement
from mlxd.control.ledger import promised_by, reserve_of
from mlxd.control.lender import Lender
from mlxd.control.refusal import KEYS, RESERVE, not_its_turn, refusal
from mlxd.control.resident import Evicts, Resident
from mlxd.control.supervisor import Supervisor
from mlxd.control.worker import Worker
from mlxd.core.clock import Clock
from mlxd.core.errors import MlxdError, PolicyLine
from mlxd.core.sizes import spoken
from mlxd.ipc import messages as ipc
from mlxd.policy.policy_set import PolicySet

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
"""Between two readings while freed bytes are awaited."""
_SETTLING_SECONDS = 0.25
"""Between two tries of a load that would fit, were it not for what just goes."""
_SEEN = 0.9
"""The part of what a worker held that must be seen to be free again."""
Evicted = Callable[[str, int, Cause], None]
"""Told a model's name, the bytes that it held, and why it had to leave."""
_FORESEEN_SECONDS, _FORESEEN_PART = 600.0, 0.25
"""For how long what a worker needed is foreseen for it, and the part of what is free that this may
be: what others need meanwhile is not short for want of it.
"""
_LONGER = 4
"""A conversation's next turn is longer: one part in so many is foreseen on top."""
_DRIFT = 0.01
"""The part of the machine's memory by which others change a reading meanwhile."""


class Room:
    """Decides by the inventory, and does what was decided."""

    def __init__(
        self,
        inventory: Inventory,
        supervisor: Supervisor,
        clock: Clock,
        in_force: Callable[[], PolicySet],
        *,
        returns_late: bool,
    ) -> None:
        """`returns_late`: whether memory may be missing after the end of who held it."""
        self._returns_late = returns_late
        self.deciding = asyncio.Lock()
        self.changes = Changes()
        self.blocked: MlxdError | None = None
        """While set, no load is given room; this is why."""
        self.closing = False
        self.on_evicted: Evicted | None = None
        """Told of each idle model that had to leave."""
        self.lender = Lender(inventory, clock, in_force, lambda: self.closing)
        self._inventory = inventory
        self._supervisor = supervisor
        self._clock = clock
        self._in_force = in_force
        self._spare = math.inf
        """Bytes that may be promised while an eviction is under way: those that it is not for."""

    async def reserve(self, incoming: Resident) -> None:
        """Wait for a load's turn and its room, evicting what may be evicted.

        Raises InsufficientMemory, ModelsBusy, or what blocks loads.
        """
        while True:
            async with self.deciding:
                pause = await self._try(incoming)
            if incoming.reserved:
                return
            await self.changes.wait(pause)

    async def clear(self, resident: Resident, grace: float, cause: Cause | None = None) -> None:
        """Have a resident out of memory and see its bytes back. The caller holds the lock.

        `cause`: why it has to leave before its time.
        """
        before = self._inventory.read_memory()
        held = self._inventory.account(resident).all
        self.forget(resident)
        await self._supervisor.stop(resident.spec, grace)
        if before is not None and held:
            await self._reclaimed(resident.card.name, held, before.available + held, before.total)
        if cause is not None and self.on_evicted is not None:
            self.on_evicted(resident.card.name, held, cause)
        self.lender.lend()
        self.changes.tell()

    async def mourn(
        self, resident: Resident, expected: tuple[float, int] | None, death: int
    ) -> None:
        """A worker died of itself: nothing is decided before what it held is seen to be free.

        `expected`: what should be available then, and what it held. `death`: which one of the
        resident's it was; what remains of a later one is that one's.
        """
        reading = self._inventory.read_memory()
        async with self.deciding:
            if expected is not None and reading is not None:
                available, held = expected
                await self._reclaimed(resident.card.name, held, available, reading.total)
        if resident.remains and resident.deaths == death:
            resident.remains = 0
        self.changes.tell()

    def forget(self, resident: Resident) -> None:
        """It is not in memory any more, or is about to leave."""
        resident.disarm()
        del self._inventory.residents[resident.spec]

    async def trim(self) -> float | None:
        """Unload what is idle beyond the bounds in force; says when more of it may leave."""
        async with self.deciding:
            while not self.closing:
                policies = self._in_force()
                plan = self._inventory.plan_excess(policies, self._clock.monotonic())
                if not plan.victims:
                    return plan.at
                victim = self._inventory.named(plan)[0]
                log.info("unloading %s: models.max_loaded", victim.card.name)
                line = _line(plan.because, policies)
                await self.clear(victim, self._grace, Cause("max_loaded", policy=line))
        return None

    async def relieve(self, enough: Callable[[], bool], *, all: bool) -> list[str]:
        """Evict in order until it is enough, or nobody is left who may go; says who went.

        `all`: neither memory.eviction.keep nor min_residency spares anyone. What workers were told
        to give back may be enough.
        """
        gone: list[str] = []
        async with self.deciding:
            await self.lender.given_back()
            while not self.closing and not enough():
                policies = self._in_force()
                keep = 0 if all else policies.memory.eviction.keep
                victims = self._inventory.evictable(policies, settling=not all)
                if not victims or len(self._inventory.present()) <= keep:
                    break
                gone.append(victims[0].card.name)
                log.warning("evicting %s: memory is short", victims[0].card.name)
                await self.clear(victims[0], self._grace, Cause("watermark"))
        return gone

    # -- what workers are promised

    async def answer(self, worker: Worker, need: ipc.Need) -> None:
        """Grant what a worker needs, evicting what is idle if that makes room; or say no.

        Where there will be room later and policy says to wait, nothing is said: `offer` grants it
        then.
        """
        if self._granted_at_once(worker, need):
            return
        async with self.deciding:
            resident = self._resident_of(worker)
            if resident is None:
                return
            granted = await self._granted(resident, worker, need)
            if not self._is_asked(resident, worker, need):
                return
            if granted:
                self._grant(resident, worker, need)
                return
            if not need.spares:
                resident.needs[need.id] = need
            self._defer(resident, worker, need)

    def foresee(self, resident: Resident) -> None:
        """It begins to work: what it needed not long ago is promised before it has to ask, which
        its first token would wait for. Nobody else waits for memory, or will for want of this.
        """
        worker, had = self._inventory.worker_of(resident), resident.budget.bytes
        more = (resident.grown - had) * (_LONGER + 1) // _LONGER
        late = self._clock.monotonic() - resident.grown_at > _FORESEEN_SECONDS
        if worker is None or late or more <= 0 or not resident.leases or self._is_awaited:
            return
        judged = self._judge(resident, had + more)
        if judged.at_once and more <= _FORESEEN_PART * judged.available:
            resident.ahead = True
            self._promise_at_once(resident, worker, more)

    @property
    def _is_awaited(self) -> bool:
        """Whether what is free is for somebody already, or for nobody any more."""
        waits = any(r.needs or r.waits for r in self._inventory.residents.values())
        return waits or self._spare < math.inf or self.closing or self.blocked is not None

    def next_offer(self) -> float | None:
        """Seconds until what was denied is worth another try; None: nobody waits."""
        policies = self._in_force()
        wanted = [
            (resident, need.bytes)
            for resident in self._inventory.residents.values()
            for need in resident.needs.values()
        ]
        if not wanted or policies.memory.reserve.when_full != "wait":
            return None
        now = self._clock.monotonic()
        known = [at - now for one in wanted if (at := self._judge(*one).plan.at) is not None]
        return max(0.0, min([float(policies.memory.check_interval), *known]))

    def _granted_at_once(self, worker: Worker, need: ipc.Need) -> bool:
        """Whether a need was granted that nobody has to leave for, nor to give back what is lent:
        somebody waits for his first token, and is told before others are lent less.
        """
        resident = self._resident_of(worker)
        if resident is None:
            return False
        more = max(0, need.bytes - resident.budget.bytes)
        if more and (self.closing or more > self._spare):
            return False
        if more and not self._judge(resident, need.bytes).at_once:
            return False
        resident.needs.pop(need.id, None)
        self._promise_at_once(resident, worker, more, answers=need.id)
        if more and not need.spares:
            resident.grown, resident.grown_at = need.bytes, self._clock.monotonic()
        return True

    def _promise_at_once(
        self, resident: Resident, worker: Worker, more: int, answers: int = 0
    ) -> None:
        self._spare -= more
        self._promise(resident, worker, resident.budget.bytes + more, answers)
        if more:
            self.lender.lend()

    def _grant(self, resident: Resident, worker: Worker, need: ipc.Need) -> None:
        """What is lent makes room where the budget rises."""
        resident.needs.pop(need.id, None)
        if need.bytes > resident.budget.bytes:
            resident.budget = replace(resident.budget, bytes=need.bytes)
            self.lender.lend()
        self._promise(resident, worker, resident.budget.bytes, answers=need.id)

    def _defer(self, resident: Resident, worker: Worker, need: ipc.Need) -> None:
        """Nothing is said where it is worth waiting. Who was denied because policy does not wait
        may have it all the same once there is room.
        """
        never = self._judge(resident, need.bytes).plan.never
        if never:
            resident.needs.pop(need.id, None)
        patient = self._in_force().memory.reserve.when_full == "wait" and not need.spares
        if never or not patient:
            self._promise(resident, worker, resident.budget.bytes, answers=need.id)

    def _judge(self, resident: Resident, size: int) -> Judgement:
        more = size - resident.budget.bytes
        return self._inventory.judge_need(resident, more, self._in_force(), size)

    async def offer(self) -> None:
        """Grant what was denied, as far as there is room now; a smaller one is not kept waiting for
        a larger one's room.
        """
        async with self.deciding:
            for resident in list(self._inventory.residents.values()):
                for need in list(resident.needs.values()):
                    await self._offer(resident, need)

    async def _offer(self, resident: Resident, need: ipc.Need) -> None:
        worker = self._inventory.worker_of(resident)
        if worker is None:
            return
        if not worker.runs(need.id):
            resident.needs.pop(need.id, None)
            return
        granted = await self._granted(resident, worker, need)
        if self._resident_of(worker) is not resident or resident.needs.get(need.id) is not need:
            return
        if granted:
            self._grant(resident, worker, need)
        else:
            self._defer(resident, worker, need)

    def settle(self, resident: Resident, worker: Worker, *, idle: bool) -> None:
        """Bring a budget in line with what is known and in force now.

        An idle worker goes back to what its first generation takes; one at work keeps what it has,
        within `memory.worker_limits`.
        """
        policies, old = self._in_force(), resident.budget
        new = self._inventory.budget_of(resident, policies)
        new = replace(new, prefix_bytes=old.prefix_bytes)
        if idle:
            resident.ahead = False
            resident.needs.clear()
        else:
            limit = policies.memory.worker_limits.mlx_memory_limit
            most = old.bytes if limit == "auto" else min(old.bytes, int(limit))
            new = replace(new, bytes=max(new.bytes, most))
        more = promised_by(new) - promised_by(old)
        if more > 0 and not self._inventory.judge_need(resident, more, policies).at_once:
            new = replace(
                new,
                bytes=min(new.bytes, old.bytes),
                cache_bytes=min(new.cache_bytes, old.cache_bytes),
            )
        resident.budget = new
        if promised_by(new) > promised_by(old):
            self.lender.lend()
        self._promise(resident, worker, new.bytes)
        self.changes.tell()

    def _promise(self, resident: Resident, worker: Worker, size: int, answers: int = 0) -> None:
        """Tell a worker what it may hold from now on."""
        budget = replace(resident.budget, bytes=size)
        budget = self._inventory.with_most(budget, resident.spec, self._in_force())
        resident.budget = budget
        worker.set_budget(replace(budget, answers=answers))

    def _is_asked(self, resident: Resident, worker: Worker, need: ipc.Need) -> bool:
        """Whether a need is still somebody's."""
        return self._resident_of(worker) is resident and (need.spares or worker.runs(need.id))

    async def _granted(self, resident: Resident, worker: Worker, need: ipc.Need) -> bool:
        """Whether a loaded model may hold what it needs; room is made for it where that helps, and
        as long as it is asked for, but by no eviction if it spares the others.
        """
        while need.bytes > resident.budget.bytes:
            judged = self._judge(resident, need.bytes)
            if self.closing or not self._is_asked(resident, worker, need):
                return False
            if judged.plan.victims:
                if need.spares:
                    return False
                victim = self._inventory.named(judged.plan)[0]
                log.info("evicting %s for more of %s", victim.card.name, resident.card.name)
                cause = _cause("growth", resident, judged, self._in_force())
                await self._evict(victim, cause, judged)
            elif judged.fits and judged.lent:
                await self._make_way(judged)
            else:
                return judged.fits
        return True

    def _resident_of(self, worker: Worker) -> Resident | None:
        """None where the worker is gone, or another has taken its place."""
        resident = self._inventory.residents.get(worker.spec)
        if resident is None or self._inventory.worker_of(resident) is not worker:
            return None
        return resident

    # -- one load

    async def _try(self, incoming: Resident) -> float:
        """Reserve what a load takes, or say how long to wait before the next try."""
        while True:
            policies = self._in_force()
            if self.blocked is not None:
                return self._wait_blocked(incoming, copy(self.blocked), policies)
            loading = self._inventory.loading()
            if len(loading) >= policies.models.load.max_parallel:
                self._put_off(incoming, not_its_turn(incoming.card.name, loading, policies))
                return float(policies.memory.check_interval)
            judged = self._inventory.judge_load(incoming.card, policies, incoming.evicts)
            if judged.plan.obstacle:
                return self._wait(incoming, judged, policies)
            if judged.fits and judged.lent:
                await self._make_way(judged)
                continue
            if judged.fits:
                incoming.budget = self._inventory.budget_for(incoming.card, policies)
                incoming.reserved = True
                incoming.waits = None
                self.lender.lend()
                return 0.0
            victim = self._inventory.named(judged.plan)[0]
            log.info("evicting %s for %s", victim.card.name, incoming.card.name)
            incoming.evicted += (victim.card.name,)
            await self._evict(victim, _cause("load", incoming, judged, policies), judged)

    async def _evict(self, victim: Resident, cause: Cause, judged: Judgement) -> None:
        """Have one leave for what was judged."""
        self._spare = judged.at_best - judged.needed
        try:
            await self.clear(victim, self._grace, cause)
        finally:
            self._spare = math.inf

    async def _make_way(self, judged: Judgement) -> None:
        """Have what is lent given back for what was judged, before anybody has to leave."""
        self._spare = judged.available - judged.needed
        try:
            await self.lender.make_way(judged.needed)
        finally:
            self._spare = math.inf

    def _wait_blocked(self, incoming: Resident, why: MlxdError, policies: PolicySet) -> float:
        """One that was in memory waits: there are answers to go on with, and what took the memory
        may be what died. Raises the refusal of any other load.
        """
        if incoming.load is None or not _patient(incoming.evicts, None, policies):
            raise why
        self._put_off(incoming, why)
        return float(policies.memory.check_interval)

    def _wait(self, incoming: Resident, judged: Judgement, policies: PolicySet) -> float:
        """How long until the next try. Raises the refusal where there is nothing to wait for."""
        now, name, at = self._clock.monotonic(), incoming.card.name, judged.plan.at
        error = refusal(judged, name, policies, now)
        if judged.plan.never and self._is_settling(incoming, judged, policies):
            return _SETTLING_SECONDS
        if judged.plan.never or not _patient(incoming.evicts, at, policies):
            raise error
        self._put_off(incoming, error)
        interval = float(policies.memory.check_interval)
        return interval if at is None else min(interval, at - now)

    def _put_off(self, incoming: Resident, why: MlxdError) -> None:
        if incoming.waits is None:
            log.info("%s waits to be loaded: %s", incoming.card.name, why.message)
        incoming.waits = why
        incoming.put_off = incoming.put_off or why

    def _is_settling(self, incoming: Resident, judged: Judgement, policies: PolicySet) -> bool:
        """Whether what does not fit now would fit the machine, and has only just been found not to:
        a process that ends gives its memory back a moment later.
        """
        memory, now = policies.memory, self._clock.monotonic()
        if incoming.evicts is not Evicts.IDLE or memory.reserve.when_full != "wait":
            return False
        reading = self._inventory.read_memory()
        if judged.plan.obstacle != "memory" or reading is None:
            return False
        if incoming.short_since is None:
            incoming.short_since = now
        room = reading.total - reserve_of(memory, reading.total)
        return judged.needed <= room and now - incoming.short_since < float(
            memory.eviction.verify_reclaim
        )

    async def _reclaimed(self, name: str, held: int, expected: float, total: int) -> None:
        """Wait until what a worker held is seen to be free again, not for ever.

        `expected`: what is available then, if nobody else takes of it.
        """
        if not self._returns_late:
            return
        wanted = expected - (1 - _SEEN) * held - _DRIFT * total
        limit = float(self._in_force().memory.eviction.verify_reclaim)
        for _ in range(math.ceil(limit / _LOOK_SECONDS)):
            if self.closing or self._available() >= wanted:
                return
            await asyncio.sleep(_LOOK_SECONDS)
        log.warning(
            "%s is gone, and its %s are not seen to be free again after %g s",
            name, spoken(held), limit,
        )  # fmt: skip

    def _available(self) -> float:
        reading = self._inventory.read_memory()
        return reading.available if reading is not None else math.inf

    @property
    def _grace(self) -> float:
        return float(self._in_force().timeouts.shutdown.term_grace)


def _cause(
    reason: Literal["load", "growth"], wanted_by: Resident, judged: Judgement, policies: PolicySet
) -> Cause:
    because = judged.plan.because
    needed, available = (judged.needed, judged.available) if because == "memory" else (0, 0)
    line = policies.line(RESERVE) if judged.reserve_evicts else _line(because, policies)
    return Cause(reason, wanted_by.card.name, needed, available, line)


def _line(obstacle: Obstacle, policies: PolicySet) -> PolicyLine | None:
    return policies.line(KEYS[obstacle]) if obstacle else None


def _patient(evicts: Evicts, at: float | None, policies: PolicySet) -> bool:
    """Whether a load waits for room that is there at a known time, or at one that nobody knows."""
    if evicts is Evicts.IDLE:
        return policies.memory.reserve.when_full == "wait"
    return evicts is Evicts.UNLISTED and at is not None
