import asyncio
import math

import pytest

from mlxd.control.memory import MemoryReading
from mlxd.control.residency import Residency
from mlxd.core.clock import ManualClock
from mlxd.core.errors import InsufficientMemory, ModelLoadFailed, ModelsBusy
from mlxd.core.models import ModelCard
from mlxd.policy.load import load
from tests.support.daemon import write_policies


class Processes:
    """Stands beside the supervisor: counts starts and stops, and can be made slow or broken."""

    def __init__(self):
        self.up = {}
        self.log = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.wedged = set()
        self.before_stop = None

    def serving(self, spec):
        return self.up.get(spec)

    async def start(self, spec, name):
        self.log.append(f"start {name}")
        await self.gate.wait()
        if name in self.wedged:
            await asyncio.sleep(3600)
        if self.broken:
            raise ModelLoadFailed("broken")
        self.up[spec] = object()
        return self.up[spec]

    async def stop(self, spec, grace):
        self.log.append(f"stop {spec.path}")
        if self.before_stop is not None:
            await self.before_stop()
        await asyncio.sleep(0)
        self.up.pop(spec, None)

    async def stop_all(self, grace):
        self.up.clear()


def card(name, size=100):
    return ModelCard(name, name, size, "0" * 64, 0.0, "llama", 1, "f32", 512)


class World:
    def __init__(self, tmp_path, models="max_loaded: 2\n"):
        self.processes = Processes()
        self.clock = ManualClock()
        self.reading = MemoryReading(total=1000, available=1000)
        self.residency = Residency(self.processes, self.clock, lambda: self.reading)  # type: ignore[arg-type]
        self.policies = load(write_policies(tmp_path / "policies", {"models": models}))

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
    world.reading = MemoryReading(total=1000, available=100)
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
    with pytest.raises(InsufficientMemory, match=r"needs 5000 bytes .* 1000 are"):
        await world.use("a", size=5000)
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
    world.policies = load(
        write_policies(
            tmp_path / "short",
            {
                "timeouts": "model_load: 100ms\n",
            },
        )
    )
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
