"""Residency under whatever may happen, in any order, on a virtual clock.

Every promise, start and stop is checked where it is made. At the end time passes, and everyone who
waits must have an answer.
"""

import asyncio
import contextlib
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxd.control.forecasting import ByWeight
from mlxd.control.memory import MemoryReading
from mlxd.control.residency import Residency
from mlxd.control.resident import Evicts
from mlxd.core.errors import InsufficientMemory, MlxdError, ModelLoadFailed
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelCard
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from tests.control.test_residency import AlwaysWell
from tests.support.daemon import write_policies
from tests.support.examples import examples
from tests.support.virtual_time import VirtualLoop

GIB = 2**30
TOTAL, RESERVE, EXTRA = 1000 * GIB, 50 * GIB, 20 * GIB
SIZES = {"a": 400 * GIB, "b": 400 * GIB, "c": 600 * GIB, "d": 150 * GIB, "e": 880 * GIB}
NAMES = st.sampled_from(sorted(SIZES))
FAR = 100_000.0
MEMORY = "reserve: {{system: 50GiB, when_full: {}}}\nworker_limits: {{mlx_cache_limit: 1GiB}}\n"
ONE_LOAD = "load: {max_parallel: 1, retry: {max: 1, backoff: 1s}}\n"
LIMITS = (
    (
        f"defaults: {{ttl: never}}\n{ONE_LOAD}",
        f"{MEMORY.format('wait')}prefix_cache: {{memory: 400GiB}}\n",
    ),
    (
        "defaults: {ttl: never}\nload: {max_parallel: 3, retry: {max: 0}}\n"
        "models: {a: {pinned: true}, d: {priority: high}}\n",
        f"{MEMORY.format('wait')}eviction: {{protect_recent: 5s, min_residency: 0s, keep: 0}}\n",
    ),
    (
        "max_loaded: 2\ndefaults: {ttl: never}\nload: {max_parallel: 2}\n"
        "models: {b: {pinned: true}}\n",
        f"{MEMORY.format('refuse')}eviction: {{protect_recent: 0s, min_residency: 0s}}\n"
        "prefix_cache: {memory: 900GiB}\n",
    ),
    (
        "max_loaded_bytes: 560GiB\ndefaults: {ttl: 40s}\nload: {max_parallel: 2}\n",
        f"{MEMORY.format('wait')}eviction: {{protect_recent: 10s, min_residency: 25s}}\n",
    ),
)


@cache
def policies():
    with TemporaryDirectory() as folder:
        made = []
        for number, (models, memory) in enumerate(LIMITS):
            files = {"models": models, "memory": memory}
            made.append(load(write_policies(Path(folder) / str(number), files)))
        return made


def card(name):
    return ModelCard(name, name, SIZES[name], "0" * 64, 0.0, "llama", 1, "f32", 512)


class Forecasts(ByWeight):
    """Learns with each busy time that a model takes more than it thought."""

    def __init__(self):
        self.learned = dict.fromkeys(SIZES, 0)

    def load_bytes(self, card, policies):
        return card.size_bytes + EXTRA + self.learned[card.name]

    def observed(self, card, observed):
        self.learned[card.name] = min(240 * GIB, self.learned[card.name] + 80 * GIB)


class Process:
    def __init__(self, spec, name, budget):
        self.spec, self.name, self.pid, self.budget = spec, name, id(self), budget
        self.alive, self.out_of_memory, self.exit = True, False, None
        self.spare = False
        self.memory = ipc.Memory(0, 0, 0)
        self.ready: ipc.Ready | None = None
        self.on_need: Any = None
        self.on_observed: Any = None
        self.on_end: Any = None
        self.answered: set[int] = set()
        self.left: set[int] = set()
        """Requests of it that asked for more and have ended."""
        self.on_budget: Any = None
        self.on_lent: Any = None

    @property
    def share(self):
        """What it may take, and what it keeps; one that has ended only what is not free again."""
        kept = self.memory.prefix
        promised = self.budget.bytes + self.budget.cache_bytes if self.alive else 0
        return max(promised, self.memory.active - kept) + kept

    def hold(self, active, kept=None):
        """So much beside what it keeps of earlier prompts."""
        kept = self.memory.prefix if kept is None else kept
        self.memory = ipc.Memory(active + kept, 0, 0, kept)

    def give_back(self):
        """What it may not keep any more."""
        active, kept = self.memory.active - self.memory.prefix, self.memory.prefix
        self.hold(active, min(kept, self.budget.prefix_bytes))

    def tune(self, tuning):
        pass

    def runs(self, id):
        return id not in self.left

    def set_budget(self, budget):
        raised = budget.bytes + budget.cache_bytes > self.budget.bytes + self.budget.cache_bytes
        self.budget = budget
        self.answered.add(budget.answers)
        self.on_lent(self)
        if raised:
            self.on_budget()

    async def gone(self, timeout):
        return True


class Processes(AlwaysWell):
    """Stands beside the supervisor, and holds against the rules what it is told to do."""

    def __init__(self, world):
        self.world = world
        self.all: list[Process] = []
        self.load_seconds, self.stop_seconds, self.free_seconds = 1.0, 0.5, 0.0
        self.step_seconds = 0.03
        """How long a step takes, after which a worker gives back what was lent."""
        self.keeps = 1.0
        """The part of what is lent that a worker has filled at once."""
        self.broken = False

    def of(self, spec):
        return next((p for p in self.all if p.spec == spec and p.alive), None)

    def private_of(self, pid):
        return next(process.memory.active for process in self.all if process.pid == pid)

    def lent(self, process):
        """It has been told what it may keep of earlier prompts."""
        kept = process.memory.prefix
        if kept <= process.budget.prefix_bytes and process.ready:
            kept = max(kept, int(process.budget.prefix_bytes * self.keeps))
            process.hold(process.memory.active - process.memory.prefix, kept)
        elif self.step_seconds:
            self.world.loop.call_later(self.step_seconds, process.give_back)
        else:
            process.give_back()

    def serving(self, spec):
        process = self.of(spec)
        return process if process is not None and process.ready else None

    def workers(self):
        return [process for process in self.all if process.alive]

    async def start(self, card, budget, prepare, known):
        world, spec, name = self.world, card.spec, card.name
        assert self.of(spec) is None, "one model, two workers"
        process = Process(spec, name, budget)
        process.on_budget = world.check_promises
        process.on_lent = self.lent
        prepare(process)
        self.all.append(process)
        world.check_start(process)
        try:
            await asyncio.sleep(self.load_seconds / 2)
            process.memory = ipc.Memory(budget.bytes // 2, 0, 0)
            await asyncio.sleep(self.load_seconds / 2)
            if self.broken or not process.alive:
                raise ModelLoadFailed("broken")
        except BaseException:
            self.gone(process)
            raise
        process.memory = ipc.Memory(budget.bytes - EXTRA, 0, 0)
        process.ready = ipc.Ready(True, 1, 512, 0.0, 0, False, False, Footprint(0, ()))
        world.used(name)
        world.loaded_at[name] = world.loop.now
        return process

    async def stop(self, spec, grace):
        process = self.of(spec)
        if process is None:
            return
        self.world.check_stop(process)
        process.alive = False
        try:
            await asyncio.sleep(self.stop_seconds)
        finally:
            self.gone(process)

    async def stop_all(self, grace):
        for process in self.workers():
            self.gone(process)

    def gone(self, process):
        """Its memory is free again after a while."""
        process.alive = False

        def free():
            if process in self.all:
                self.all.remove(process)

        self.world.loop.call_later(self.free_seconds, free)
        if process.on_end is not None:
            process.on_end(process)


class ResidencyMachine(RuleBasedStateMachine):
    @initialize(number=st.integers(0, len(LIMITS) - 1))
    def begin(self, number):
        self.loop = VirtualLoop()
        self.number = number
        self.others, self.blind, self.blocked, self.emergency = 0, False, False, False
        self.processes = Processes(self)
        self.residency = Residency(
            self.processes,  # type: ignore[arg-type]
            self.loop,
            self.read,
            Forecasts(),
        )
        self.residency._inventory.private_of = self.processes.private_of
        self.users: list[tuple[str, asyncio.Event, asyncio.Task[None]]] = []
        self.chores: list[tuple[str, asyncio.Task[None]]] = []
        self.hung_up: set[asyncio.Task[None]] = set()
        self.told: set[str] = set()
        self.held: dict[str, int] = dict.fromkeys(SIZES, 0)
        self.last_used: dict[str, float] = dict.fromkeys(SIZES, 0.0)
        self.loaded_at: dict[str, float] = dict.fromkeys(SIZES, 0.0)
        self.needs: list[tuple[Process, int]] = []
        self.ids = count(1)
        self.died = asyncio.Event()
        """Some worker has; another such event takes its place then."""
        self.unexpected: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.unexpected.append(str(context)))
        self.loop.do(self.residency.apply, self.policies)

    @property
    def policies(self):
        return policies()[self.number]

    def read(self):
        if self.blind:
            return None
        held = sum(process.memory.active for process in self.processes.all)
        return MemoryReading(TOTAL, TOTAL - self.others - held)

    def used(self, name):
        self.last_used[name] = self.loop.now

    # -- what is checked where it is done

    def check_promises(self):
        """The sum of what is promised is within what there was when the promise was made."""
        if not self.blind:
            shares = sum(process.share for process in self.processes.all)
            assert shares + self.others + RESERVE <= TOTAL, "promised more than there is"

    def check_start(self, process):
        models = self.policies.models
        present = [p for p in self.processes.all if p.alive]
        assert not self.blocked, "a load while loads are blocked"
        asked = [*((name, task) for name, _, task in self.users), *self.chores]
        assert any(name == process.name and not task.done() for name, task in asked), "for nobody"
        assert sum(p.ready is None for p in present) <= models.load.max_parallel
        if models.max_loaded != "auto":
            assert len(present) <= models.max_loaded
        if models.max_loaded_bytes != "auto":
            assert sum(SIZES[p.name] for p in present) <= models.max_loaded_bytes
        self.check_promises()

    def check_stop(self, process):
        name, eviction = process.name, self.policies.memory.eviction
        assert not self.held[name], f"{name} is in use and stopped"
        assert process.ready is not None, f"{name} is loading and stopped"
        ttl = float(self.policies.models.defaults.ttl)
        idle = self.loop.now - self.last_used[name]
        told = name in self.told
        self.told.discard(name)
        if told or idle >= ttl - 1e-6:
            return
        assert idle >= float(eviction.protect_recent) - 1e-6, f"{name} was used just now"
        stayed = self.loop.now - self.loaded_at[name]
        assert self.emergency or stayed >= float(eviction.min_residency) - 1e-6, "thrash"

    # -- what happens

    @rule(name=NAMES, turns=st.integers(0, 6))
    def use(self, name, turns):
        done = asyncio.Event()

        async def user():
            try:
                async with self.residency.lease(card(name), None, self.policies) as lease:
                    self.held[name] += 1
                    try:
                        await self._work(lease, done)
                    finally:
                        self.held[name] -= 1
                        self.used(name)
            except MlxdError:
                pass

        self.users.append((name, done, self.loop.create_task(user())))
        self.loop.settle(turns)

    async def _work(self, lease, done):
        """To the end, on one worker after the other."""
        while not done.is_set():
            await lease.worker()
            died = asyncio.ensure_future(self.died.wait())
            ended = asyncio.ensure_future(done.wait())
            try:
                await asyncio.wait({died, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                died.cancel()
                ended.cancel()

    @rule(name=NAMES, seconds=st.sampled_from([0.0, 1.5, 5.0]))
    def use_and_end(self, name, seconds):
        self.use(name, 4)
        self.loop.advance(seconds)
        self.users[-1][1].set()
        self.loop.settle(4)

    @rule(name=NAMES)
    def use_and_hang_up(self, name):
        self.use(name, 6)
        self.leave(self.users[-1][2])
        self.loop.settle(3)

    @rule(name=NAMES, evicts=st.sampled_from([Evicts.UNLISTED, Evicts.NOBODY]))
    def load_in_the_background(self, name, evicts):
        async def work():
            with contextlib.suppress(MlxdError):
                await self.residency.load(card(name), self.policies, evicts)

        self.chores.append((name, self.loop.create_task(work())))
        self.loop.settle(3)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), turns=st.integers(0, 6))
    def end(self, data, turns):
        data.draw(st.sampled_from(self.users))[1].set()
        self.loop.settle(turns)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), turns=st.integers(0, 3))
    def hang_up(self, data, turns):
        self.leave(data.draw(st.sampled_from(self.users))[2])
        self.loop.settle(turns)

    def leave(self, task):
        self.hung_up.add(task)
        task.cancel()

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 4.0, 10.0, 31.0]))
    def wait(self, seconds):
        self.loop.advance(seconds)

    @rule(name=NAMES)
    def unload(self, name):
        self.loop.do(self._unload, name)
        self.loop.settle(2)

    def _unload(self, name):
        if any(resident.card.name == name for resident in self.residency.residents()):
            self.told.add(name)
        self.residency.unload(card(name))

    @rule(names=st.sets(NAMES, max_size=2))
    def pin(self, names):
        self.loop.do(self.residency.protect, frozenset(card(name).spec for name in names))
        self.loop.settle(2)

    @rule(number=st.integers(0, len(LIMITS) - 1))
    def edit(self, number):
        self.loop.do(self._edit, number)
        self.loop.settle(2)

    def _edit(self, number):
        self.number = number
        self.residency.apply(self.policies)

    @precondition(lambda self: self.processes.workers())
    @rule(data=st.data(), out_of_memory=st.booleans())
    def crash(self, data, out_of_memory):
        process = data.draw(st.sampled_from(self.processes.workers()))
        process.out_of_memory = out_of_memory
        self.loop.do(self._crash, process)
        self.loop.settle(2)

    def _crash(self, process):
        self.processes.gone(process)
        died, self.died = self.died, asyncio.Event()
        died.set()

    @rule(broken=st.booleans(), load=st.sampled_from([0.0, 1.0, 20.0]), stop=st.booleans())
    def change_processes(self, broken, load, stop):
        self.processes.broken, self.processes.load_seconds = broken, load
        self.processes.stop_seconds = 3.0 if stop else 0.0
        self.processes.free_seconds = 0.4 if stop else 0.0

    @rule(others=st.sampled_from([0, 100, 400, 900]), blind=st.booleans())
    def press(self, others, blind):
        self.others, self.blind = others * GIB, blind and others == 0

    @rule(blocked=st.booleans())
    def block(self, blocked):
        self.loop.do(self._block, InsufficientMemory("full") if blocked else None)
        self.loop.settle(2)

    def _block(self, why):
        self.blocked = why is not None
        self.residency.block_loads(why)

    @rule(count=st.integers(0, 3), all=st.booleans())
    def relieve(self, count, all):
        gone = count

        def enough():
            nonlocal gone
            gone -= 1
            return gone < 0

        async def work():
            self.emergency = all
            await self.residency.relieve(enough, all=all)
            self.emergency = False

        self.loop.run(work())

    @precondition(lambda self: any(p.ready for p in self.processes.workers()))
    @rule(data=st.data(), more=st.sampled_from([-10, 0, 10, 100, 900]))
    def need(self, data, more):
        ready = [process for process in self.processes.workers() if process.ready]
        process = data.draw(st.sampled_from(ready))
        id = next(self.ids)
        self.needs.append((process, id))
        self.loop.do(process.on_need, process, ipc.Need(id, process.budget.bytes + more * GIB))
        self.loop.settle(2)

    @precondition(lambda self: self.needs)
    @rule(data=st.data())
    def leave_that_asked_for_more(self, data):
        process, id = data.draw(st.sampled_from(self.needs))
        process.left.add(id)

    @precondition(lambda self: any(p.ready for p in self.processes.workers()))
    @rule(data=st.data(), idle=st.booleans())
    def hold_more_or_less(self, data, idle):
        ready = [process for process in self.processes.workers() if process.ready]
        process = data.draw(st.sampled_from(ready))
        process.hold(SIZES[process.name] if idle else process.budget.bytes)
        if idle:
            process.left.update(id for asker, id in self.needs if asker is process)
            self.loop.do(process.on_observed, process, ipc.Observed(1, 1, 1, 1))
        self.loop.settle(2)

    @rule(
        left=st.sampled_from([0.0, 0.5, 1.0]),
        keeps=st.sampled_from([0.0, 0.6, 1.0]),
        step=st.sampled_from([0.0, 0.03, 7.0]),
    )
    def look_at_memory(self, left, keeps, step):
        """As the guard does, under one mark or another."""
        self.processes.keeps, self.processes.step_seconds = keeps, step
        self.loop.do(self.residency.lend, left)

    @rule(name=NAMES, context=st.none() | st.integers(1, 512))
    def ask_whether_it_fits(self, name, context):
        before = len(self.processes.all), self.residency.residents()
        self.residency.fit(card(name), self.policies, context)
        assert (len(self.processes.all), self.residency.residents()) == before

    @invariant()
    def nothing_has_gone_wrong_unseen(self):
        if not hasattr(self, "users"):
            return
        for task in self.asking:
            if task.cancelled():
                assert task in self.hung_up, "cancelled, and nobody had hung up"
            elif task.done():
                assert task.exception() is None, task.exception()
        assert not self.unexpected, self.unexpected

    @property
    def asking(self):
        return [*(task for _, _, task in self.users), *(task for _, task in self.chores)]

    def teardown(self):
        """Everything is given back, and time passes: less than the longest that a load may take."""
        if not hasattr(self, "loop"):
            return
        self.others, self.blind = 0, False
        self.loop.do(self._block, None)
        self.processes.broken, self.processes.load_seconds = False, 1.0
        for _, done, _ in self.users:
            done.set()
        self.loop.advance(60.0)
        for process, id in self.needs:
            gone = not process.alive or not process.runs(id)
            assert gone or id in process.answered, "a need without an answer"
        self.loop.advance(200.0)
        pending = [task for task in self.asking if not task.done()]
        assert not pending, f"still waiting: {pending}"
        self.nothing_has_gone_wrong_unseen()
        self.loop.run(self.residency.close(0.0))
        self.nothing_has_gone_wrong_unseen()
        left = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        assert not left, f"left over: {left}"
        self.loop.close()


ResidencyMachine.TestCase.settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=examples(60, 120),
    report_multiple_bugs=False,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
TestResidency = pytest.mark.timeout(300)(ResidencyMachine.TestCase)  # to shrink what fails
