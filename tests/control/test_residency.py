import asyncio
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from mlxd.control.ledger import PROCESS_BYTES
from mlxd.control.memory import MemoryReading
from mlxd.control.residency import Residency
from mlxd.control.resident import Evicts
from mlxd.core.clock import ManualClock
from mlxd.core.errors import InsufficientMemory, ModelLoadFailed, ModelsBusy
from mlxd.core.footprint import Footprint
from mlxd.core.models import ModelCard, ModelSpec
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from tests.support.daemon import write_policies

GIB = 2**30
AT_ONCE = (
    "eviction: {protect_recent: 0s, min_residency: 0s}\nreserve: {system: 1B, when_full: refuse}\n"
)
"""What decides at once: nobody is spared for a time, and nobody waits."""
LOAD = "load: {max_parallel: 9, retry: {max: 0}}\n"


class Process:
    """Stands in for a worker: holds what it was promised, and remembers what it was told."""

    def __init__(self, spec, name, budget):
        self.spec, self.name, self.pid = spec, name, 0
        self.alive, self.out_of_memory, self.spare = True, False, False
        self.exit: Any = None
        self.memory = ipc.Memory(budget.bytes, 0, budget.bytes)
        self.ready = ipc.Ready(True, 1, 512, 0.0, budget.bytes, False, False, Footprint(0, ()))
        self.budgets = [budget]
        self.on_need: Any = None
        self.on_observed: Any = None
        self.on_end: Any = None
        self.ended: set[int] = set()

    def tune(self, tuning):
        pass

    def runs(self, id):
        return id not in self.ended

    def set_budget(self, budget):
        self.budgets.append(budget)

    async def gone(self, timeout):
        return True

    def need(self, size, id=1):
        self.on_need(self, ipc.Need(id, size))

    def observed(self):
        self.on_observed(self, ipc.Observed(1, 1, 1, 1))


class AlwaysWell:
    """What a supervisor is asked before a start, where no worker ever failed."""

    def admitted(self, card):
        return nullcontext()

    def load_under_way(self, card):
        return nullcontext()

    def check(self, card):
        pass

    async def turn(self, card, waits):
        pass

    def wait(self, spec):
        return 0.0

    def late(self, spec):
        pass

    def forget(self, spec):
        pass


class Processes(AlwaysWell):
    """Stands beside the supervisor: counts starts and stops, and can be made slow or broken."""

    def __init__(self):
        self.up = {}
        self.loading = []
        self.read = 0
        """GiB that each that is being loaded has read."""
        self.log = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = self.said_why = False
        self.wedged = set()
        self.before_stop = None
        self.leaks = 0
        """Bytes of stopped workers that are not free again."""

    @property
    def held(self):
        loading = len(self.loading) * self.read * GIB
        return (
            self.leaks + loading + sum(p.memory.active + p.memory.cache for p in self.up.values())
        )

    def private_of(self, pid):
        return self.read * GIB

    def serving(self, spec):
        return self.up.get(spec)

    def workers(self):
        return [*self.up.values(), *self.loading]

    async def start(self, card, budget, prepare, known):
        spec, name = card.spec, card.name
        self.log.append(f"start {name}")
        process = Process(spec, name, budget)
        self.loading.append(process)
        try:
            await self.gate.wait()
            if name in self.wedged:
                await asyncio.sleep(3600)
            if self.broken:
                error = ModelLoadFailed("broken")
                error.final = self.said_why
                raise error
        finally:
            self.loading.remove(process)
        self.up[spec] = process
        prepare(self.up[spec])
        return self.up[spec]

    async def stop(self, spec, grace):
        self.log.append(f"stop {spec.path}")
        self.up.pop(spec, None)
        if self.before_stop is not None:
            await self.before_stop()
        await asyncio.sleep(0)

    async def stop_all(self, grace):
        self.up.clear()

    def crash(self, spec, out_of_memory=False):
        worker = self.up.pop(spec)
        worker.alive, worker.out_of_memory = False, out_of_memory
        worker.on_end(worker)


def card(name, size=100, path=None):
    """A model of `size` GiB."""
    size *= GIB
    return ModelCard(name, path or name, size, "0" * 64, 0.0, "llama", 1, "f32", 512)


def specs(*names):
    return frozenset(ModelSpec(name, 512) for name in names)


class World:
    """A machine of 1000 GiB whose models hold what they are promised."""

    def __init__(self, tmp_path, models="max_loaded: 2\n", memory=AT_ONCE, clock=None):
        self.folder = tmp_path / "policies"
        self.memory = memory
        self.processes = Processes()
        self.clock: Any = clock or ManualClock()
        self.others = 0
        """GiB that other processes hold."""
        self.residency = Residency(
            self.processes,  # type: ignore[arg-type]
            self.clock,
            self.read,
        )
        self.residency._inventory.private_of = self.processes.private_of
        self.policies = self.load(models)

    def read(self):
        taken = self.others * GIB + self.processes.held
        return MemoryReading(total=1000 * GIB, available=1000 * GIB - taken)

    def load(self, models):
        files = {
            "models": models if "max_parallel" in models else models + LOAD,
            "memory": self.memory,
        }
        return load(write_policies(self.folder, files))

    def change(self, models):
        """New policies come into force."""
        self.policies = self.load(models)
        self.residency.apply(self.policies)

    def lease(self, name, keep_alive=None, size=100):
        return self.residency.lease(card(name, size), keep_alive, self.policies)

    async def use(self, name, keep_alive=None, size=100):
        async with self.lease(name, keep_alive, size):
            self.clock.advance(1)

    async def settle(self):
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def loaded(self):
        return sorted(spec.path for spec in self.processes.up)


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    await made.residency.close(0)


async def test_a_copy_has_what_policy_says_of_its_model(world):
    copy = replace(card("a"), name="copy", copy_of="a")
    world.change("defaults: {ttl: 10s}\nmodels: {a: {ttl: 77s, pinned: true, priority: high}}\n")
    async with world.residency.lease(copy, None, world.policies):
        (resident,) = world.residency.residents()
        candidate = world.residency._inventory.candidate(resident, world.policies)
        assert (resident.ttl, candidate.pinned, candidate.priority) == (77, True, "high")
    world.change("defaults: {ttl: 10s}\nmodels: {copy: {ttl: 88s}}\n")
    assert resident.ttl == 88, "of a model of which nothing is said"


async def test_a_model_in_memory_is_served_as_it_was_loaded_whatever_its_files_are_now(world):
    now = replace(card("a"), digest="1" * 64)
    assert world.residency.as_served(now) is now
    await world.use("a")
    assert world.residency.as_served(now) == card("a")


async def test_many_requests_for_a_cold_model_cause_one_load(world):
    world.processes.gate.clear()
    users = [asyncio.create_task(world.use("a")) for _ in range(50)]
    await world.settle()
    world.processes.gate.set()
    await asyncio.gather(*users)
    assert world.processes.log == ["start a"]


async def test_a_load_goes_on_when_the_one_who_asked_leaves(world):
    world.processes.gate.clear()
    first = asyncio.create_task(world.use("a"))
    second = asyncio.create_task(world.use("a"))
    await world.settle()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    world.processes.gate.set()
    await second
    assert world.processes.log == ["start a"]


async def test_the_least_recently_used_makes_room(world):
    await world.use("a")
    await world.use("b")
    await world.use("a")
    await world.use("c")
    assert world.loaded == ["a", "c"]


async def test_a_leased_model_is_never_evicted(world):
    await world.use("b")
    async with world.lease("a"):
        await world.use("b")
        await world.use("c")
        assert world.loaded == ["a", "c"]
        async with world.lease("c"):
            with pytest.raises(ModelsBusy) as refused:
                await world.use("d")
            assert refused.value.policy is not None
            assert refused.value.policy.key == "models.max_loaded"
    await world.use("d")
    assert "d" in world.loaded


async def test_a_model_leased_while_another_stops_is_spared(tmp_path):
    world = World(tmp_path, "max_loaded: auto\n")
    await world.use("a", size=400)
    await world.use("b", size=400)
    world.others = 100
    leased = asyncio.Event()
    done = asyncio.Event()
    holders: list[asyncio.Task[None]] = []

    async def hold_b():
        async with world.lease("b", size=400):
            leased.set()
            await done.wait()

    async def lease_b_meanwhile():
        if not holders:
            holders.append(asyncio.create_task(hold_b()))
            await leased.wait()

    world.processes.before_stop = lease_b_meanwhile
    with pytest.raises(InsufficientMemory):
        await world.use("c", size=800)
    assert world.loaded == ["b"]
    done.set()
    await asyncio.gather(*holders)
    await world.residency.close(0)


async def test_what_does_not_fit_is_refused_with_the_numbers(tmp_path):
    world = World(tmp_path, "max_loaded: auto\n")
    world.others = 900
    with pytest.raises(InsufficientMemory, match=r"needs 201 GiB .* 100 GiB .* are") as refused:
        await world.use("a", size=200)
    error = refused.value
    assert (error.needed_bytes, error.available_bytes) == (201 * GIB + PROCESS_BYTES, 100 * GIB - 1)
    assert error.policy is not None
    assert (error.policy.key, error.retry_after) == ("memory.reserve.system", 60)
    assert world.residency.residents() == []


async def test_a_failed_load_leaves_nothing_behind_and_may_be_tried_again(world):
    world.processes.broken = True
    with pytest.raises(ModelLoadFailed):
        await world.use("a")
    assert world.residency.residents() == []
    world.processes.broken = False
    await world.use("a")
    assert world.loaded == ["a"]


async def test_a_load_that_hangs_holds_up_no_other_and_ends_at_its_limit(tmp_path):
    world = World(tmp_path)
    short = {"timeouts": "model_load: 100ms\n", "models": LOAD, "memory": AT_ONCE}
    world.policies = load(write_policies(tmp_path / "short", short))
    world.processes.wedged.add("stuck")
    stuck = asyncio.create_task(world.use("stuck"))
    await world.settle()
    await world.use("a")
    assert not stuck.done()
    with pytest.raises(ModelLoadFailed, match=r"not loaded within 0\.1 s"):
        await stuck
    assert world.residency.failed([card("stuck"), card("a")]).keys() == {"stuck"}
    await world.residency.close(0)


async def test_what_is_loading_counts_as_loaded_when_room_is_made(tmp_path):
    world = World(tmp_path, "max_loaded: auto\n")
    world.processes.gate.clear()
    first = asyncio.create_task(world.use("a", size=600))
    await world.settle()
    with pytest.raises(InsufficientMemory):
        await world.use("b", size=600)
    world.processes.gate.set()
    await first
    await world.residency.close(0)


async def test_a_dead_worker_is_replaced_on_the_next_request(world):
    await world.use("a")
    world.processes.up.clear()
    await world.use("a")
    assert world.processes.log == ["start a", "start a"]


async def test_a_load_that_waits_for_the_next_start_does_not_say_that_it_waits_for_room(world):
    await world.use("a")
    world.processes.up.clear()
    over = asyncio.Event()
    world.processes.turn = lambda card, waits: over.wait()
    world.processes.wait = lambda spec: 4.0
    again = asyncio.create_task(world.use("a"))
    await world.settle()
    progress = world.residency.progress_of("a")
    assert str(progress) == "loading: it is started again after a failure"
    over.set()
    await again


async def test_an_idle_model_is_unloaded_after_its_time(tmp_path):
    world = World(tmp_path, "defaults: {ttl: 20ms}\n")
    async with world.lease("a"):
        await asyncio.sleep(0.05)
        assert world.loaded == ["a"], "idle time starts at the end of the last use"
    for _ in range(100):
        if not world.loaded:
            break
        await asyncio.sleep(0.01)
    assert world.loaded == []


async def test_keep_alive_replaces_the_time_and_its_absence_keeps_it(world):
    await world.use("a", keep_alive=math.inf)
    await world.use("a")
    (resident,) = world.residency.residents()
    assert resident.keep_alive == math.inf
    assert resident.use_count == 2
    await world.use("a", keep_alive=0)
    await world.settle()
    assert world.loaded == []


async def test_unload_waits_for_running_requests(world):
    async with world.lease("a"):
        world.residency.unload(card("a"))
        await world.settle()
        assert world.loaded == ["a"]
    await world.settle()
    assert world.loaded == []


async def test_a_lease_taken_just_before_the_unload_keeps_the_model(world):
    await world.use("a")
    world.residency.unload(card("a"))
    async with world.lease("a", keep_alive=60):
        await world.settle()
        assert world.loaded == ["a"]


# -- other policies


async def test_a_shorter_ttl_counts_from_the_last_use(world):
    world.change("defaults: {ttl: 5m}\nmodels: {b: {ttl: 10m}}\n")
    await world.use("a")
    await world.use("b")
    world.clock.advance(60)
    world.change("defaults: {ttl: 2m}\nmodels: {b: {ttl: 30s}}\n")
    await world.settle()
    assert world.loaded == ["a"], "b was idle for longer than its new time"
    (left,) = (r.expires_wall - world.clock.wall() for r in world.residency.residents())
    assert left == 120 - 61


async def test_a_model_whose_new_ttl_is_over_goes_by_its_timer(world):
    world.change("defaults: {ttl: never}\n")
    await world.use("a")
    world.change("defaults: {ttl: 20ms}\n")
    assert world.loaded == ["a"]
    for _ in range(100):
        if not world.loaded:
            break
        await asyncio.sleep(0.01)
    assert world.loaded == []


async def test_a_longer_ttl_ends_the_timer_that_ran(world):
    world.change("defaults: {ttl: 20ms}\n")
    await world.use("a")
    world.change("defaults: {ttl: 1h}\n")
    await asyncio.sleep(0.05)
    assert world.loaded == ["a"]


async def test_a_longer_ttl_takes_back_an_unload_that_was_decided(world):
    """What was decided waits for the lock; by then it is no longer right."""
    world.change("max_loaded: 9\n")
    await world.use("a")
    await world.use("b")
    await world.use("c")
    stopping, go_on = asyncio.Event(), asyncio.Event()

    async def hold():
        stopping.set()
        await go_on.wait()

    world.processes.before_stop = hold
    world.residency.unload(card("a"))
    await stopping.wait()
    world.clock.advance(60)
    world.change("defaults: {ttl: 1s}\n")
    await world.settle()
    world.change("defaults: {ttl: 1h}\nmodels: {c: {ttl: 2s}}\n")
    go_on.set()
    await world.settle()
    assert world.loaded == ["b"]


async def test_a_model_in_use_follows_a_changed_ttl_when_it_is_released(world):
    async with world.lease("a"):
        world.clock.advance(1000)
        world.change("defaults: {ttl: 0s}\n")
        await world.settle()
        assert world.loaded == ["a"]
    await world.settle()
    assert world.loaded == []


async def test_what_a_client_asked_for_outlasts_a_changed_ttl(world):
    await world.use("a", keep_alive=600)
    world.clock.advance(60)
    world.change("defaults: {ttl: 1s}\nmodels: {a: {ttl: 1s}}\n")
    await world.settle()
    assert world.loaded == ["a"]


async def test_a_model_loaded_by_an_older_request_has_the_ttl_in_force(world):
    older = world.policies
    world.change("defaults: {ttl: 7s}\n")
    async with world.residency.lease(card("a"), None, older):
        pass
    (resident,) = world.residency.residents()
    assert resident.keep_alive == 7


async def test_a_load_that_everyone_left_idles_out_from_its_end(world):
    world.change("defaults: {ttl: 5s}\n")
    world.processes.gate.clear()
    user = asyncio.create_task(world.use("a"))
    await world.settle()
    user.cancel()
    await asyncio.gather(user, return_exceptions=True)
    world.clock.advance(100)
    world.processes.gate.set()
    await world.settle()
    assert world.loaded == ["a"]
    (resident,) = world.residency.residents()
    assert resident.expiry is not None
    assert resident.expires_wall == world.clock.wall() + 5


async def test_an_unload_in_the_middle_of_a_load_that_everyone_left_waits_for_its_end(world):
    world.processes.gate.clear()
    user = asyncio.create_task(world.use("a"))
    await world.settle()
    user.cancel()
    await asyncio.gather(user, return_exceptions=True)
    world.residency.unload(card("a"))
    await world.settle()
    assert world.processes.log == ["start a"]
    world.processes.gate.set()
    await world.settle()
    assert world.loaded == []
    assert world.residency.residents() == []


async def test_a_lower_max_loaded_unloads_what_is_idle_and_never_what_is_in_use(world):
    world.change("max_loaded: 4\n")
    for name in ("a", "b", "c", "d"):
        await world.use(name)
    async with world.lease("a"):
        world.change("max_loaded: 2\n")
        await world.settle()
        assert world.loaded == ["a", "d"]
        async with world.lease("d"):
            world.change("max_loaded: 1\n")
            await world.settle()
            assert world.loaded == ["a", "d"]
        await world.settle()
        assert world.loaded == ["a"], "idle now, and one too many"


async def test_a_model_leased_while_others_are_unloaded_for_the_limit_is_spared(world):
    world.change("max_loaded: 4\n")
    for name in ("a", "b", "c"):
        await world.use(name)
    done = asyncio.Event()
    holders: list[asyncio.Task[None]] = []

    async def hold_b():
        async with world.lease("b"):
            await done.wait()

    async def lease_b_meanwhile():
        if not holders:
            holders.append(asyncio.create_task(hold_b()))
            await asyncio.sleep(0)

    world.processes.before_stop = lease_b_meanwhile
    world.change("max_loaded: 1\n")
    await world.settle()
    assert world.loaded == ["b"]
    done.set()
    await asyncio.gather(*holders)


# -- preloaded models


async def test_a_preloaded_model_is_evicted_last_and_does_not_idle_out(world):
    world.change("max_loaded: 2\ndefaults: {ttl: 0s}\nmodels: {b: {ttl: never}}\n")
    world.residency.protect(specs("a"))
    await world.use("a")
    await world.settle()
    await world.use("b")
    await world.use("b")
    async with world.lease("c"):
        assert world.loaded == ["a", "c"]
        async with world.lease("d"):
            assert world.loaded == ["c", "d"], "a request may have it evicted"


async def test_a_preload_evicts_neither_what_is_in_use_nor_what_is_preloaded(world):
    world.residency.protect(specs("a", "c"))
    await world.use("a")
    await world.use("b")
    await world.residency.load(card("c"), world.policies, Evicts.UNLISTED)
    assert world.loaded == ["a", "c"]
    with pytest.raises(ModelsBusy):
        await world.residency.load(card("d"), world.policies, Evicts.UNLISTED)
    async with world.lease("b"):
        with pytest.raises(ModelsBusy):
            await world.residency.load(card("d"), world.policies, Evicts.UNLISTED)
    assert "b" in world.loaded


async def test_a_request_that_joins_a_preload_has_what_it_needs_evicted(world):
    world.residency.protect(specs("a", "b"))
    await world.use("a")
    await world.use("b")
    async with world.residency._room.deciding:
        preload = asyncio.create_task(
            world.residency.load(card("c"), world.policies, Evicts.UNLISTED)
        )
        await world.settle()
        user = asyncio.create_task(world.use("c"))
        await world.settle()
    await asyncio.gather(preload, user)
    assert world.loaded == ["b", "c"]
    assert world.processes.log.count("start c") == 1


async def test_a_load_does_not_inherit_what_an_earlier_one_might_evict(world):
    await world.use("c")
    world.processes.up.clear()
    world.residency.protect(specs("a", "b"))
    for name in ("a", "b"):
        await world.use(name)
    with pytest.raises(ModelsBusy):
        await world.residency.load(card("c"), world.policies, Evicts.UNLISTED)


async def test_a_client_may_have_a_preloaded_model_unloaded(world):
    world.residency.protect(specs("a", "b"))
    await world.use("a")
    world.residency.unload(card("a"))
    await world.use("b", keep_alive=0)
    await world.settle()
    assert world.loaded == []
    await world.use("a")
    (resident,) = world.residency.residents()
    assert resident.expires_wall == math.inf


async def test_a_model_that_is_no_longer_preloaded_idles_from_its_last_use(world):
    world.change("defaults: {ttl: 2m}\n")
    world.residency.protect(specs("a"))
    await world.use("a")
    world.clock.advance(60)
    world.residency.protect(frozenset())
    await world.settle()
    assert world.loaded == ["a"]
    (resident,) = world.residency.residents()
    assert resident.expires_wall - world.clock.wall() == 60
    world.residency.protect(specs("a"))
    assert resident.expires_wall == math.inf
    assert resident.expiry is None


async def test_a_load_nobody_asked_for_counts_as_no_use_and_leaves_a_loaded_model_alone(world):
    await world.residency.load(card("a"), world.policies, Evicts.UNLISTED)
    (resident,) = world.residency.residents()
    assert resident.use_count == 0
    before = resident.last_used
    world.clock.advance(5)
    await world.residency.load(card("a"), world.policies, Evicts.UNLISTED)
    assert resident.last_used == before
    assert world.processes.log == ["start a"]


# -- names that lead elsewhere


async def test_a_model_without_a_name_goes_when_nothing_uses_it(world):
    await world.use("a", keep_alive=math.inf)
    async with world.lease("b") as lease:
        worker = await lease.worker()
        await world.residency.follow([card("c")], world.policies)
        await world.settle()
        assert world.loaded == ["b"]
        assert world.processes.serving(card("b").spec) is worker
    await world.settle()
    assert world.loaded == []
    assert "start c" not in world.processes.log


async def test_a_name_that_comes_back_saves_its_model(world):
    async with world.lease("a"):
        await world.residency.follow([], world.policies)
        await world.residency.follow([card("a")], world.policies)
    await world.settle()
    assert world.loaded == ["a"]


async def test_the_successor_is_loaded_before_the_old_one_goes(world):
    await world.use("a", keep_alive=math.inf)
    await world.residency.follow([card("a", path="new")], world.policies)
    await world.settle()
    assert world.loaded == ["new"]
    assert world.processes.log == ["start a", "start a", "stop a"]
    (resident,) = world.residency.residents()
    assert resident.keep_alive == math.inf, "what the client asked for goes with the name"


async def test_a_stream_on_the_old_worker_finishes_beside_the_successor(world):
    async with world.lease("a") as lease:
        worker = await lease.worker()
        await world.residency.follow([card("a", path="new")], world.policies)
        async with world.residency.lease(card("a", path="new"), None, world.policies) as other:
            assert await other.worker() is not worker
        await world.settle()
        assert world.loaded == ["a", "new"]
    await world.settle()
    assert world.loaded == ["new"]


async def test_a_successor_that_does_not_fit_beside_evicts_nobody(world):
    await world.use("a")
    await world.use("b")
    await world.residency.follow([card("a", path="new"), card("b")], world.policies)
    await world.settle()
    assert world.loaded == ["b"]
    world.change("max_loaded: auto\n")
    world.others = 850
    await world.residency.follow([card("b", path="newer")], world.policies)
    await world.settle()
    assert world.loaded == []


async def test_an_old_model_that_was_evicted_and_leased_anew_meanwhile_is_spared(world):
    done = asyncio.Event()
    holders: list[asyncio.Task[None]] = []

    async def hold_old():
        async with world.lease("a"):
            await done.wait()

    async def lease_old_meanwhile():
        if not holders:
            holders.append(asyncio.create_task(hold_old()))
            await asyncio.sleep(0)

    await world.use("a")
    await world.use("b")
    world.processes.before_stop = lease_old_meanwhile
    new = card("a", path="new")
    async with world.residency._room.deciding:
        following = asyncio.create_task(world.residency.follow([new, card("b")], world.policies))
        await world.settle()
        user = asyncio.create_task(world.residency.load(new, world.policies, Evicts.IDLE))
        await world.settle()
    await asyncio.gather(following, user)
    await world.settle()
    assert "a" in world.loaded
    assert "a" in {r.spec.path for r in world.residency.residents()}
    done.set()
    await asyncio.gather(*holders)


async def test_a_successor_that_is_broken_keeps_nothing_alive(world):
    await world.use("a")
    world.processes.broken = True
    await world.residency.follow([card("a", path="new")], world.policies)
    await world.settle()
    assert world.loaded == []
    assert world.residency.failed([card("a", path="new")])


async def test_what_an_edit_cannot_have_loaded_another_way_stays_as_it_was(world):
    await world.use("a")
    world.processes.broken = world.processes.said_why = True
    edited = replace(card("a"), kv_bits=8)
    await world.residency.follow([edited], world.policies)
    await world.settle()
    assert list(world.processes.up) == [card("a").spec]
    assert world.residency.failed([edited]) == {"a": "broken"}


async def test_what_was_about_to_go_stays_once_its_successor_is_found_broken(world):
    edited = replace(card("a"), kv_bits=8)
    async with world.lease("a"):
        world.others = 850
        await world.residency.follow([edited], world.policies)
        assert [r.retired for r in world.residency.residents()] == [True]
        world.others = 0
        world.processes.broken = world.processes.said_why = True
        with pytest.raises(ModelLoadFailed):
            await world.residency.load(edited, world.policies, Evicts.IDLE)
    await world.settle()
    assert list(world.processes.up) == [card("a").spec]


async def test_what_a_client_had_unloaded_gets_no_successor(world):
    async with world.lease("a"):
        world.residency.unload(card("a"))
        await world.residency.follow([card("a", path="new")], world.policies)
    await world.settle()
    assert world.processes.log == ["start a", "stop a"]


async def test_a_model_with_another_name_left_is_called_by_it(world):
    world.change("models: {z: {ttl: 7s}}\n")
    await world.use("a")
    found = [card("a", path="new"), card("z", path="a")]
    await world.residency.follow(found, world.policies)
    await world.settle()
    assert world.loaded == ["a", "new"]
    assert {r.card.name: r.spec.path for r in world.residency.residents()} == {
        "z": "a",
        "a": "new",
    }
    assert {r.keep_alive for r in world.residency.residents() if r.card.name == "z"} == {7}


async def test_a_model_shows_its_present_card_unless_its_files_changed(world):
    await world.use("a")
    now = replace(card("a"), context=99, trained_context=512)
    await world.residency.follow([now], world.policies)
    (resident,) = world.residency.residents()
    assert resident.card.context == 99
    await world.residency.follow([replace(now, digest="1" * 64, context=9)], world.policies)
    assert resident.card.context == 99


async def test_excess_is_told_and_nothing_done(world, tmp_path):
    await world.use("a")
    await world.use("b")
    other = load(write_policies(tmp_path / "other", {"models": "max_loaded: 1\n"}))
    assert [r.card.name for r in world.residency.excess(other)] == ["a"]
    await world.settle()
    assert world.loaded == ["a", "b"]


@pytest.mark.parametrize("jump", [3600, -24 * 3600])
async def test_a_wall_clock_that_jumps_neither_ends_nor_prolongs_a_stay(world, jump):
    await world.use("a", keep_alive=60)
    world.clock.epoch += jump
    world.clock.advance(58)
    world.change("defaults: {ttl: 60s}\n")
    await world.settle()
    assert world.loaded == ["a"]
    world.clock.advance(3)
    world.change("defaults: {ttl: 61s}\n")
    world.change("defaults: {ttl: 60s}\n")
    await world.settle()
    assert world.loaded == []


async def test_the_time_of_a_load_is_not_what_passed_while_the_daemon_was_stopped(tmp_path):
    world = World(tmp_path, clock=ManualClock())
    short = {"timeouts": "model_load: 20ms\n", "models": LOAD, "memory": AT_ONCE}
    world.policies = load(write_policies(tmp_path / "short", short))
    world.processes.gate.clear()
    user = asyncio.create_task(world.use("a"))
    await asyncio.sleep(0.1)  # on the loop's clock, and not on the world's
    assert not user.done()
    world.clock.advance(0.03)
    with pytest.raises(ModelLoadFailed):
        await user
    await world.residency.close(0)


async def test_the_weights_of_a_model_that_drafts_count_with_those_of_its_own(world):
    world.change("max_loaded: 9\nmax_loaded_bytes: 300GiB\n")
    drafted = replace(card("a"), draft=card("draft", 50))
    async with world.residency.lease(drafted, None, world.policies):
        pass
    await world.use("b", size=150)
    assert world.loaded == ["a", "b"]
    await world.use("c", size=1)
    assert world.loaded == ["b", "c"], "300 GiB were taken"
