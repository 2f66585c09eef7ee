"""A model that is leased while its worker dies: its place, its memory, its next worker."""

from __future__ import annotations

import asyncio

import pytest

from mlxd.core.errors import InsufficientMemory, ModelLoadFailed, ModelsBusy
from mlxd.core.models import ModelSpec
from tests.control.test_residency import AT_ONCE, GIB, World
from tests.support.virtual_time import VirtualLoop

A = ModelSpec("a", 512)


@pytest.fixture
def loop():
    made = VirtualLoop()
    asyncio.set_event_loop(made)
    yield made
    made.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def world(loop, tmp_path):
    made = World(tmp_path, "max_loaded: auto\n", AT_ONCE, loop)
    yield made
    loop.run(made.residency.close(0))


def use(world, name, size=100):
    async def used():
        async with world.lease(name, size=size):
            pass

    return used()


def test_a_lease_gives_the_worker_that_serves_and_the_next_one_when_it_died(loop, world):
    async def run():
        async with world.lease("a") as lease:
            first = await lease.worker()
            assert await lease.worker() is first
            world.processes.crash(A)
            second = await lease.worker()
            assert second is not first
            assert await lease.worker() is second
            assert [r.use_count for r in world.residency.residents()] == [1]
        assert world.loaded == ["a"]

    loop.run(run())


def test_many_leases_of_a_model_that_died_cause_one_load(loop, world):
    async def one(died):
        async with world.lease("a") as lease:
            await died.wait()
            await lease.worker()

    async def run():
        died = asyncio.Event()
        users = [asyncio.create_task(one(died)) for _ in range(20)]
        await world.settle()
        world.processes.crash(A)
        died.set()
        await asyncio.gather(*users)

    loop.run(run())
    assert world.processes.log == ["start a", "start a"]


def test_nobody_takes_the_place_of_a_leased_model_whose_worker_died(loop, world):
    async def run():
        async with world.lease("a", size=600) as lease:
            world.processes.crash(A)
            await world.settle()
            with pytest.raises(InsufficientMemory):
                await use(world, "b", size=600)
            await use(world, "c", size=100)
            await lease.worker()
        assert world.processes.log == ["start a", "start c", "start a"]

    loop.run(run())


def test_nor_its_place_among_as_many_as_may_be_loaded(loop, tmp_path):
    world = World(tmp_path, "max_loaded: 1\n", AT_ONCE, loop)

    async def run():
        async with world.lease("a"):
            world.processes.crash(A)
            with pytest.raises(ModelsBusy):
                await use(world, "b")
        await use(world, "b")
        await world.residency.close(0)

    loop.run(run())


def test_the_place_is_free_once_nobody_waits_for_it(loop, world):
    async def run():
        async with world.lease("a", size=600):
            world.processes.crash(A)
        await world.settle()
        assert not world.residency.residents()
        await use(world, "b", size=600)

    loop.run(run())


@pytest.mark.parametrize("leased", [True, False])
def test_what_a_dead_worker_held_is_nobodys_until_it_is_seen_to_be_free(loop, world, leased):
    """It is free again after 2 s; the next load is judged then, and evicts nobody for it."""

    async def run():
        await use(world, "other", size=300)
        async with world.lease("a", size=600) as lease:
            waited = await died(lease) if leased else 0.0
        waited = waited if leased else await died(None)
        assert waited == pytest.approx(2.0, abs=0.2)
        assert "other" in world.loaded

    async def died(lease):
        began = loop.now
        world.processes.leaks = 600 * GIB
        world.processes.crash(A)
        loop.call_later(2, setattr, world.processes, "leaks", 0)
        await (lease.worker() if lease is not None else use(world, "a", size=600))
        return loop.now - began

    loop.run(run())


def test_it_is_accounted_as_long_although_nobody_waits_for_the_model(loop, world):
    """What a GPU may hold is known by what is accounted, not by a reading."""

    async def run():
        async with world.lease("a", size=600):
            world.processes.leaks = 600 * GIB
            world.processes.crash(A)
        held = [world.residency._inventory.account(r).held for r in world.residency.residents()]
        assert held == [600 * GIB]
        world.processes.leaks = 0
        await asyncio.sleep(0.1)
        assert not world.residency.residents()

    loop.run(run())


def test_what_is_never_seen_to_be_free_is_not_waited_for_for_ever(loop, world):
    async def run():
        async with world.lease("a", size=300) as lease:
            world.processes.leaks = 300 * GIB
            world.processes.crash(A)
            began = loop.now
            await lease.worker()
            assert loop.now - began == pytest.approx(5.0, abs=0.2), "verify_reclaim"

    loop.run(run())


def test_where_memory_ends_with_its_process_nobody_waits_for_it(loop, world):
    """Whatever is missing then, others took: a crash on a busy machine costs no time."""
    world.residency._room._returns_late = False

    async def run():
        async with world.lease("a", size=300) as lease:
            world.processes.leaks = 300 * GIB
            world.processes.crash(A)
            began = loop.now
            await lease.worker()
            assert loop.now - began < 0.2

    loop.run(run())


def test_memory_that_others_took_meanwhile_is_not_waited_for(loop, world):
    """What their workers hold more by their own word is known."""

    async def run():
        async with world.lease("b", size=100) as other, world.lease("a", size=300) as lease:
            grown = await other.worker()
            grown.memory = grown.memory.__class__(grown.memory.active + 200 * GIB, 0, 0)
            world.processes.crash(A)
            began = loop.now
            await lease.worker()
            assert loop.now - began < 0.1

    loop.run(run())


@pytest.mark.parametrize("away", [5.0, 60.0])
def test_a_model_that_was_in_memory_is_loaded_from_a_folder_that_is_back(loop, world, away):
    """As that of a disk which is mounted again. Who asks for one that was not is told at once."""

    async def look(card, _):
        if loop.now < back:
            error = ModelLoadFailed("model 'a' cannot be used: no such file or directory")
            error.final = error.of_files = True
            raise error
        return card

    async def run():
        async with world.lease("a") as lease:
            world.processes.crash(A)
            world.residency._loads._check = look
            if away < 6:
                await lease.worker()
                assert loop.now - began == pytest.approx(6, abs=0.1), "models.load.retry: 2 s, 4 s"
                return
            with pytest.raises(ModelLoadFailed, match="no such file") as caught:
                await lease.worker()
            line = caught.value.policy
            assert line is not None
            assert line.key == "models.load.retry.max"
            assert loop.now - began == pytest.approx(6, abs=0.1)
            with pytest.raises(ModelLoadFailed, match="no such file"):
                await use(world, "b")
            assert loop.now - began == pytest.approx(6, abs=0.1)

    world.change("load: {max_parallel: 1, retry: {max: 2, backoff: 2s}}\n")
    began = loop.now
    back = began + away
    loop.run(run())


def test_a_worker_that_is_killed_and_not_over_yet_keeps_its_place(loop, world):
    """It serves no more, and has what it was promised."""

    async def run():
        async with world.lease("a", size=600) as lease:
            worker = await lease.worker()
            over = asyncio.Event()
            worker.gone = lambda timeout: over.wait()
            worker.alive = False
            worker.memory = worker.memory.__class__(100 * GIB, 0, 0)
            world.processes.up.pop(A)
            world.processes.leaks = 100 * GIB
            with pytest.raises(InsufficientMemory):
                await use(world, "b", size=600)
            next_one = asyncio.create_task(lease.worker())
            await asyncio.sleep(1)
            assert world.processes.log == ["start a"], "not beside the one that dies"
            world.processes.leaks = 0
            worker.on_end(worker)
            over.set()
            await next_one

    loop.run(run())


def test_one_that_dies_is_accounted_although_its_last_lease_ends_before_it_is_gone(loop, world):
    async def run():
        async with world.lease("a", size=600) as lease:
            worker = await lease.worker()
            worker.alive = False  # condemned
            world.processes.up.pop(A)
            world.processes.leaks = 600 * GIB
        (resident,) = world.residency.residents()
        assert world.residency._inventory.account(resident).held == 600 * GIB
        with pytest.raises(InsufficientMemory):
            await use(world, "b", size=600)
        worker.on_end(worker)
        assert world.residency._inventory.account(resident).held == 600 * GIB
        world.processes.leaks = 0
        await asyncio.sleep(0.1)
        assert not world.residency.residents()
        await use(world, "b", size=600)

    loop.run(run())


def test_what_a_second_death_left_is_not_taken_for_free_when_the_first_is_mourned(loop, world):
    async def run():
        deciding = world.residency._room.deciding
        async with world.lease("a", size=600) as lease:
            async with deciding:
                next_one = asyncio.create_task(lease.worker())
                world.processes.crash(A)
                (resident,) = world.residency.residents()
                next_one.cancel()
                next_one = asyncio.create_task(lease.worker())
                first = resident.deaths
            await next_one
            await asyncio.sleep(0.1)
            async with deciding:
                late = asyncio.create_task(world.residency._mourned(resident, None, first))
                await asyncio.sleep(0)
                world.processes.leaks = 600 * GIB
                world.processes.crash(A)
            await asyncio.sleep(0.2)
            assert late.done()
            assert resident.remains == 600 * GIB
            world.processes.leaks = 0
            await late
            await asyncio.sleep(0.1)
            assert resident.remains == 0

    loop.run(run())


def test_who_waits_for_what_is_counted(loop, world):
    async def run():
        world.processes.gate.clear()
        waiting = [asyncio.create_task(use(world, "a")) for _ in range(3)]
        await asyncio.sleep(1)
        assert world.residency.waiting() == {"load": 3, "memory": 0}
        waiting[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.residency.waiting() == {"load": 2, "memory": 0}
        world.processes.gate.set()
        await asyncio.gather(*waiting[1:])
        assert world.residency.waiting() == {"load": 0, "memory": 0}

    loop.run(run())


def test_who_waits_for_room_waits_for_memory(loop, tmp_path):
    world = World(tmp_path, "max_loaded: auto\n", AT_ONCE.replace("refuse", "wait"), loop)

    async def run():
        async with world.lease("a", size=600):
            waiting = asyncio.create_task(use(world, "b", size=600))
            await asyncio.sleep(1)
            assert world.residency.waiting() == {"load": 0, "memory": 1}
        await waiting
        await world.residency.close(0)

    loop.run(run())


@pytest.mark.parametrize(("when_full", "waits"), [("wait", True), ("refuse", False)])
def test_it_waits_for_the_end_of_a_block_of_loads_where_others_are_refused(
    loop, tmp_path, when_full, waits
):
    """A system that is short of memory kills the largest, and says so for a while."""
    memory = AT_ONCE.replace("refuse", when_full)
    world = World(tmp_path, "max_loaded: auto\n", memory, loop)
    short = InsufficientMemory("memory is at 95 %")

    async def run():
        async with world.lease("a") as lease:
            began = loop.now
            world.processes.crash(A)
            world.residency.block_loads(short)
            loop.call_later(7, world.residency.block_loads, None)
            for late in "ba":
                with pytest.raises(InsufficientMemory):
                    await use(world, late)
            if waits:
                waiting = asyncio.ensure_future(lease.worker())
                await asyncio.sleep(1)
                with pytest.raises(InsufficientMemory):
                    await use(world, "a")
                assert lease.waits() is not None
                await waiting
                assert lease.waits() is None
                assert loop.now - began == pytest.approx(7, abs=0.1)
            else:
                with pytest.raises(InsufficientMemory):
                    await lease.worker()
        await world.residency.close(0)

    loop.run(run())


def test_who_comes_while_loads_are_blocked_waits_for_one_that_has_room(loop, world):
    short = InsufficientMemory("memory is at 95 %")

    async def run():
        world.processes.gate.clear()
        first = asyncio.create_task(use(world, "a"))
        await world.settle()
        world.residency.block_loads(short)
        late = asyncio.create_task(use(world, "a"))
        with pytest.raises(InsufficientMemory) as refused:
            await use(world, "b")
        assert refused.value is not short, "each is told by an error of its own"
        world.processes.gate.set()
        await asyncio.gather(first, late)
        assert world.processes.log == ["start a"]

    loop.run(run())
