"""A machine on a virtual clock with a real supervisor, residency and recovery; only the processes
are made up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlxd.control.exit import Exit
from mlxd.control.memory import MemoryReading
from mlxd.control.prefixes import PrefixWishes
from mlxd.control.recovery import Recovery
from mlxd.control.residency import Residency
from mlxd.control.slot import Slot
from mlxd.control.supervisor import Supervisor
from mlxd.core.errors import ModelLoadFailed, WorkerStalled
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelCard
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

GIB = 2**30
EAGER = {
    "memory": "eviction: {protect_recent: 0s, min_residency: 0s}\n"
    "reserve: {system: 1B, when_full: refuse}\n",
    "models": "load: {max_parallel: 9, retry: {max: 0}}\ndefaults: {ttl: 1d}\n",
}


class Engine:
    """One made-up process: loads in a second, then makes its first token, unless told otherwise."""

    def __init__(self, world: World, spec: Any, name: str, budget: ipc.Budget) -> None:
        self.world, self.spec, self.name, self.budget = world, spec, name, budget
        self.pid = world.next_pid()
        self.alive = True
        self.ready: ipc.Ready | None = None
        self.memory = ipc.Memory(budget.bytes, 0, budget.bytes)
        self.exit: Exit | None = None
        self.out_of_memory = self.spare = False
        self.stderr, self.victims, self.running = "first\nlast /home/me/words\n", 0, 0
        self.canaries = self.step = 0
        self.calm: Any = None
        self.pongs: list[ipc.Pong | None] = []
        """What it answers to pings; the last for ever."""
        self.lingers = False
        """Killed, it is gone only when a test says that it `ends`."""
        self.dawdles = False
        """Told to end, it takes its time, until it is killed."""
        self.on_need: Any = None
        self.on_observed: Any = None
        self.on_end: Any = None
        self.on_token: Any = None
        self._failing = asyncio.get_running_loop().create_future()

    async def until_ready(self, stall: float = 0.0) -> ipc.Ready:
        await asyncio.wait([self._failing], timeout=self.world.load_seconds)
        self.world.fate(self, "load")
        if not self.alive:
            raise ModelLoadFailed(
                f"model '{self.name}' could not be loaded: its worker ended before that"
            )
        self.ready = ipc.Ready(True, 1, 512, 0.0, self.budget.bytes, False, False, Footprint(0, ()))
        return self.ready

    async def canary(self, timeout: float, stall: float) -> None:
        self.canaries += 1
        try:
            await asyncio.sleep(self.world.token_seconds)
        finally:
            if self.world.token_seconds:  # whoever cancels it waits for its word
                await asyncio.wait([self._failing])
        self.world.fate(self, "canary")
        if not self.alive:
            raise WorkerStalled("it is gone")

    async def ping(self, timeout: float) -> ipc.Pong | None:
        pong = self.pongs.pop(0) if len(self.pongs) > 1 else self.pongs[0]
        await asyncio.sleep(timeout if pong is None else 0.0)
        self.step = pong.step if pong is not None else self.step
        return pong

    def ends(self, status: int, *, asked: bool = False, verdict: Any = None) -> None:
        """The process is gone."""
        if self.exit is not None:
            return
        self.alive, self.exit = False, Exit(status, asked, verdict)
        self.world.dead.append(self)
        if not self._failing.done():
            self._failing.set_result(None)
        if self.on_end is not None:
            self.on_end(self)

    def kill(self) -> None:
        self.alive = False
        if not self.lingers:
            self.ends(-9, asked=True)

    def condemn(self, verdict: Any) -> None:
        self.alive = False
        if not self.lingers:
            self.ends(-9, verdict=verdict)

    async def gone(self, timeout: float) -> bool:
        return self.exit is not None

    async def stop(self, grace: float) -> None:
        self.alive = False
        if self.dawdles:
            await asyncio.wait([self._failing], timeout=grace)
        self.ends(0, asked=True)

    async def cleared(self, timeout: float) -> bool:
        return True

    def set_budget(self, budget: ipc.Budget) -> None:
        self.budget = budget

    def tune(self, tuning: ipc.Tuning) -> None:
        self.tuning = tuning

    def value(self, rules: ipc.PrefixRules) -> None:
        self.rules = rules


def card(name: str, size: int = 100, digest: str = "0") -> ModelCard:
    """A model of `size` GiB."""
    return ModelCard(name, name, size * GIB, digest * 64, 0.0, "llama", 1, "f32", 512)


class World:
    """1000 GiB. `fate` decides what becomes of an engine at its load and at its canary."""

    def __init__(self, folder: Path, policies: Mapping[str, str] | None = None) -> None:
        self.loop = VirtualLoop()
        self.folder = folder / "policies"
        self.load_seconds = 1.0
        self.token_seconds = 0.0
        self.fate: Callable[[Engine, str], None] = lambda engine, when: None
        self.kept: set[str] = set()
        self.engines: list[Engine] = []
        self.dead: list[Engine] = []
        self.starts: list[float] = []
        self.known: list[Any] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.counts = SimpleNamespace(exits=[], restarts=[])
        self.counts.worker_exited = lambda model, reason: self.counts.exits.append((model, reason))
        self.counts.worker_restarted = self.counts.restarts.append
        self.policies = self._load(policies or {})
        self.supervisor = Supervisor(
            self.loop, folder, self.policies, counts=self.counts, spawn=self._spawn,
            prefixes=PrefixWishes(folder, self.policies),
        )  # fmt: skip
        self.supervisor.on_event = lambda type, message, data: self.events.append(
            (type, dict(data))
        )
        self.residency = Residency(self.supervisor, self.loop, self._read)
        self.residency._inventory.private_of = lambda pid: 0
        self.recovery = Recovery(
            self.supervisor, self.residency, self.loop,
            lambda: self.policies, lambda card: card.name in self.kept,
        )  # fmt: skip
        self.began = self.loop.now
        self.recovering = self.loop.create_task(self.recovery.run())
        self.loop.settle()

    def edit(self, **policies: str) -> None:
        self.policies = self._load(policies)
        self.loop.do(self.supervisor.apply, self.policies)

    def ask(self, name: str = "a", **of: Any) -> asyncio.Task[Engine]:
        """A request that wants a worker, and lets it go at once."""

        async def leased() -> Any:
            async with self.residency.lease(card(name, **of), None, self.policies) as lease:
                return await lease.worker()

        return self.loop.create_task(leased())

    def answer(self, name: str = "a", **of: Any) -> Any:
        """The worker that a request got, or what it was told."""
        return self.loop.run(_outcome(self.ask(name, **of)))

    def advance(self, seconds: float) -> None:
        """Let time pass, with everything that happens in it and at its end."""
        self.loop.advance(seconds)
        self.loop.settle()

    def slot(self, name: str = "a") -> Slot:
        return next(slot for slot in self.supervisor.slots() if slot.name == name)

    def of(self, type: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.events if kind == type]

    def next_pid(self) -> int:
        return 100 + len(self.engines)

    def close(self) -> None:
        async def closed() -> None:
            await self.recovery.close()
            self.recovering.cancel()
            await self.residency.close(0.0)

        self.loop.run(closed())
        self.loop.close()

    def _load(self, policies: Mapping[str, str]) -> Any:
        return load(write_policies(self.folder, {**EAGER, **policies}))

    def _read(self) -> MemoryReading:
        held = sum(engine.memory.active for engine in self.engines if engine.alive)
        return MemoryReading(total=1000 * GIB, available=1000 * GIB - held)

    async def _spawn(
        self, spec: Any, name: str, clock: Any, *, temporary: Path, budget: Any, known: Any
    ) -> Engine:
        self.starts.append(self.loop.now - self.began)
        self.known.append(known)
        await asyncio.sleep(0)
        self.engines.append(Engine(self, spec, name, budget))
        return self.engines[-1]


async def _outcome(task: asyncio.Task[Any]) -> Any:
    found: Any = await asyncio.gather(task, return_exceptions=True)
    return found[0]


def dies(status: int = -11) -> Callable[[Engine, str], None]:
    """At its load."""
    return lambda engine, when: engine.ends(status) if when == "load" else None
