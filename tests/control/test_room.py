"""Waiting for room, making it, and what workers are promised; on a virtual clock."""

import asyncio
import logging
from dataclasses import replace
from itertools import pairwise

import pytest

from mlxd.control.ledger import PROCESS_BYTES
from mlxd.control.resident import Evicts, Load
from mlxd.core.errors import InsufficientMemory, ModelsBusy
from mlxd.ipc import messages as ipc
from mlxd.policy.load import load
from tests.control.test_residency import AT_ONCE, GIB, LOAD, World, card
from tests.support.daemon import write_policies
from tests.support.virtual_time import VirtualLoop

WAIT = "eviction: {protect_recent: 30s, min_residency: 0s}\nreserve: {system: 1B}\n"
PATIENT = "eviction: {protect_recent: 0s, min_residency: 0s}\nreserve: {system: 1B}\n"


class Timed(World):
    """The same machine; the clock is the loop's."""

    def __init__(self, tmp_path, memory=WAIT, models="max_loaded: 2\n"):
        self.loop = VirtualLoop()
        super().__init__(tmp_path, models, memory, clock=self.loop)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.done: dict[str, asyncio.Event] = {}
        self.loads: dict[str, Load | None] = {}

    def begin(self, name, size=100):
        """Use a model until `end`."""
        self.done[name] = asyncio.Event()

        async def user():
            async with self.lease(name, size=size) as lease:
                self.loads[name] = lease.load
                await self.done[name].wait()

        self.tasks[name] = self.loop.create_task(user())
        self.loop.settle()

    def end(self, name):
        self.done[name].set()
        self.loop.settle()

    def once(self, *names, size=100):
        for name in names:
            self.begin(name, size)
            self.end(name)
            self.tasks[name].result()

    def failure(self, name):
        return self.tasks[name].exception()

    def worker(self, name):
        return self.processes.up[card(name).spec]

    def close(self):
        for task in self.tasks.values():
            task.cancel()
        self.loop.settle()
        self.loop.run(self.residency.close(0))
        self.loop.close()


@pytest.fixture
def timed(tmp_path):
    made = []

    def make(*args, **options):
        made.append(Timed(tmp_path, *args, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()


# -- waiting


def test_a_load_waits_until_the_recently_used_may_go_and_not_longer(timed):
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    world.begin("b")
    world.loop.advance(29.9)
    assert world.loaded == ["a"]
    world.loop.advance(0.2)
    assert world.loaded == ["b"]


def test_a_use_meanwhile_makes_it_wait_anew_and_its_end_is_waited_for(timed):
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    world.begin("b")
    world.loop.advance(20)
    world.begin("a")
    world.loop.advance(25)
    assert world.loaded == ["a"]
    world.end("a")
    world.loop.advance(29)
    assert world.loaded == ["a"]
    world.loop.advance(2)
    assert world.loaded == ["b"]


def test_a_request_that_comes_with_an_edit_does_not_wait_for_what_the_edit_replaces(timed):
    """It may come before anybody has found that there is no room beside it."""
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    edited = replace(card("a"), kv_bits=8)

    async def both():
        following = world.residency.follow([edited], world.policies)
        await asyncio.gather(following, world.residency.load(edited, world.policies, Evicts.IDLE))

    before = world.loop.now
    world.loop.run(both())
    assert world.loop.now - before < 1
    assert [one.spec.kv_bits for one in world.residency.residents()] == [8]


def test_a_load_goes_on_the_moment_that_a_lease_ends(timed):
    world = timed(PATIENT, models="max_loaded: 1\n")
    world.begin("a")
    world.begin("b")
    before = world.loop.now
    world.end("a")
    assert world.loaded == ["b"]
    assert world.loop.now == before


def test_a_load_follows_what_other_processes_give_back(timed):
    world = timed(PATIENT, models="max_loaded: auto\n")
    world.others = 300
    world.begin("a", size=600)
    world.begin("b", size=200)
    world.others = 0
    world.loop.advance(10)
    assert world.loaded == ["a", "b"]


def test_the_time_of_a_load_ends_its_wait_and_the_reason_is_told(timed):
    world = timed(PATIENT, models="max_loaded: auto\n")
    world.begin("a", size=600)
    world.begin("b", size=600)
    world.loop.advance(301)
    refused = world.failure("b")
    assert isinstance(refused, InsufficientMemory)
    assert "a would have to leave and is in use" in refused.message
    assert refused.policy is not None
    assert refused.policy.key == "memory.reserve.system"
    assert refused.would_pass == "the same request once a is not in use any more"
    assert refused.numbers["limit_seconds"] == 300
    assert refused.needed_bytes == refused.numbers["needed_bytes"] == 601 * GIB + PROCESS_BYTES
    assert 398 * GIB < refused.available_bytes < 400 * GIB
    assert not world.residency.failed([card("b")]), "it is not broken"


def test_a_daemon_that_does_not_wait_says_when_to_come_again(timed):
    refuse = WAIT.replace("system: 1B", "system: 1B, when_full: refuse")
    world = timed(refuse, models="max_loaded: 1\n")
    world.once("a")
    world.loop.advance(10)
    world.begin("b")
    refused = world.failure("b")
    assert isinstance(refused, ModelsBusy)
    assert refused.policy is not None
    assert refused.policy.key == "memory.eviction.protect_recent"
    assert refused.retry_after == 20
    assert refused.would_pass == "the same request once a is left alone for as long as that says"
    assert refused.numbers == {"max_loaded": "1"}
    assert "a would have to leave and may in 20 s" in refused.message


def test_one_just_loaded_stays_and_the_line_that_says_so_is_named(timed):
    text = "eviction: {protect_recent: 1s, min_residency: 60s}\nreserve: {when_full: refuse}\n"
    world = timed(text, models="max_loaded: 1\n")
    world.once("a")
    world.loop.advance(10)
    world.begin("b")
    refused = world.failure("b")
    assert refused.policy is not None
    assert (refused.policy.key, refused.retry_after) == ("memory.eviction.min_residency", 50)


def test_an_edit_reaches_who_waits(timed):
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    world.begin("b")
    world.memory = PATIENT
    world.loop.do(world.change, "max_loaded: 1\n")
    world.loop.settle()
    assert world.loaded == ["b"]


def test_who_hangs_up_while_waiting_is_not_loaded_for(timed):
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    world.begin("b")
    world.tasks["b"].cancel()
    world.loop.advance(100)
    assert world.loaded == ["a"]
    assert [r.card.name for r in world.residency.residents()] == ["a"]
    world.once("b")
    assert world.loaded == ["b"], "and is when it asks again"


def test_who_comes_just_after_the_last_has_left_has_a_load_of_its_own(timed):
    world = timed(PATIENT, models="max_loaded: 1\n")
    world.begin("a")
    world.begin("b")
    world.tasks["b"].cancel()
    world.begin("b")
    world.end("a")
    world.end("b")
    world.tasks["b"].result()


def test_loads_take_turns_and_one_that_waits_for_room_holds_up_no_other(timed):
    world = timed(PATIENT, models="load: {max_parallel: 1}\n")
    world.begin("a", size=600)
    world.begin("big", size=600)
    world.processes.gate.clear()
    world.begin("b")
    world.begin("c")
    assert world.processes.log == ["start a", "start b"]
    world.processes.gate.set()
    world.loop.settle()
    assert world.loaded == ["a", "b", "c"]
    world.end("a")
    assert "big" in world.loaded


def test_a_load_that_waited_for_its_turn_until_its_time_was_over_has_not_failed(timed):
    world = timed(PATIENT, models="load: {max_parallel: 1, retry: {max: 0}}\n")
    world.processes.wedged.add("a")
    world.begin("a")
    world.begin("b")
    world.loop.advance(301)
    refused = world.failure("b")
    assert isinstance(refused, ModelsBusy)
    assert "a is being loaded, and no more than 1 may be" in refused.message
    assert refused.policy is not None
    assert refused.policy.key == "models.load.max_parallel"
    assert world.residency.failed([card("a"), card("b")]).keys() == {"a"}


def test_a_lease_tells_what_its_load_waited_for_and_who_left(timed):
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    first = world.loads["a"]
    assert (first.put_off, first.evicted) == (None, ())
    world.once("a")
    assert world.loads["a"] is None, "it was there"
    world.loop.advance(10)
    world.begin("b")
    world.loop.advance(21)
    load = world.loads["b"]
    assert load.evicted == ("a",)
    assert load.room_seconds >= 20
    assert "a would have to leave and may in 20 s" in load.put_off.message
    assert load.put_off.policy.key == "memory.eviction.protect_recent"


def test_whoever_leaves_is_told_with_what_had_it_leave(timed):
    world = timed(PATIENT, models="max_loaded: 2\n")
    told = []
    world.residency.on_evicted = lambda name, held, cause: told.append((name, cause))
    world.once("a", "b", "c")
    world.loop.do(world.change, "max_loaded: 1\n")
    world.loop.advance(1)
    (first, for_c), (second, trimmed) = told
    assert (first, for_c.reason, for_c.wanted_by) == ("a", "load", "c")
    assert for_c.policy.key == "models.max_loaded"
    assert (second, trimmed.reason, trimmed.wanted_by, trimmed.needed) == ("b", "max_loaded", "", 0)
    assert trimmed.policy.key == "models.max_loaded"
    assert trimmed.policy.value == "1"


def preload(world, name):
    work = world.residency.load(card(name), world.policies, Evicts.UNLISTED)
    task = world.loop.create_task(work)
    world.loop.settle()
    return task


def test_a_preload_waits_for_a_time_that_is_known_and_for_nothing_else(timed):
    world = timed(models="max_loaded: 1\n")
    world.once("a")
    waiting = preload(world, "b")
    world.loop.advance(31)
    assert waiting.done()
    assert world.loaded == ["b"]
    world.begin("b")
    assert isinstance(preload(world, "c").exception(), ModelsBusy)


def test_a_request_that_joins_a_preload_lends_it_its_patience(timed):
    world = timed(models="max_loaded: 1\n")
    for joined in (False, True):
        world.once("a")
        waiting = preload(world, "b")
        if joined:
            world.begin("b")
        world.begin("a")
        world.loop.advance(11)
        assert waiting.done() is not joined
        world.end("a")
        world.loop.advance(31)
        assert world.loaded == (["b"] if joined else ["a"])


# -- blocks, the guard, reclaim


def test_blocked_loads_are_refused_and_those_under_way_go_on(timed):
    world = timed(PATIENT, models="max_loaded: 2\n")
    world.begin("a")
    world.begin("b")
    world.begin("waits")
    world.end("b")
    world.processes.gate.clear()
    world.end("a")
    world.begin("under way")
    why = InsufficientMemory("memory is at 95 %")
    world.loop.do(world.residency.block_loads, why)
    world.begin("late")
    world.processes.gate.set()
    world.loop.settle()
    assert str(world.failure("late")) == str(why)
    assert "under way" in world.loaded
    assert "waits" in world.loaded
    world.loop.do(world.residency.block_loads, None)
    world.end("waits")
    world.once("late")


def test_a_load_that_waits_is_refused_when_loads_are_blocked(timed):
    world = timed(PATIENT, models="max_loaded: 1\n")
    world.begin("a")
    world.begin("b")
    why = InsufficientMemory("memory is at 95 %")
    world.loop.do(world.residency.block_loads, why)
    world.loop.settle()
    assert str(world.failure("b")) == str(why)


def test_the_guard_looks_before_each_load(timed):
    world = timed(PATIENT)
    looks = []

    async def look():
        looks.append(world.loaded)
        await world.residency.relieve(lambda: False, all=True)

    world.residency.before_load = look
    world.once("a", "b")
    assert looks == [[], ["a"]]
    assert world.loaded == ["b"]


def test_relief_takes_the_longest_unused_until_it_is_enough_and_keeps_some(timed):
    world = timed(models="max_loaded: 9\n")
    world.once("a", "b", "c", "d")
    world.loop.advance(31)
    world.begin("d")

    def relieve(enough, **options):
        return world.loop.run(world.residency.relieve(enough, **options))

    assert relieve(lambda: world.read().available >= 650 * GIB) == ["a"]
    assert relieve(lambda: False) == ["b", "c"], "d is in use"
    world.end("d")
    assert relieve(lambda: False, all=True) == [], "and was used just now"
    world.loop.advance(31)
    assert relieve(lambda: False) == [], "the last one is kept"
    assert relieve(lambda: False, all=True) == ["d"]


def test_only_an_emergency_takes_what_was_just_loaded(timed):
    text = "eviction: {protect_recent: 0s, min_residency: 60s, keep: 0}\n"
    world = timed(text)
    world.once("a")
    assert world.loop.run(world.residency.relieve(lambda: False)) == []
    assert world.loop.run(world.residency.relieve(lambda: False, all=True)) == ["a"]


def test_the_next_load_waits_until_freed_bytes_are_seen(timed):
    world = timed(PATIENT, models="max_loaded: 1\n")
    world.once("a", size=400)

    async def leak():
        world.processes.leaks = 400 * GIB
        world.loop.call_later(2.0, setattr, world.processes, "leaks", 0)

    world.processes.before_stop = leak
    world.begin("b", size=400)
    world.loop.advance(1.9)
    assert world.loaded == []
    world.loop.advance(0.2)
    assert world.loaded == ["b"]


def test_bytes_that_do_not_come_back_are_told_and_not_counted_on(timed, caplog):
    world = timed(PATIENT, models="max_loaded: 1\n")
    world.once("a", size=700)

    async def leak():
        world.processes.leaks = 700 * GIB

    world.processes.before_stop = leak
    with caplog.at_level(logging.WARNING):
        world.begin("b", size=700)
        world.loop.advance(6 + 6)
    assert "700 GiB are not seen to be free again after 5 s" in caplog.text
    assert isinstance(world.failure("b"), InsufficientMemory)
    world.processes.before_stop = None
    world.once("c", size=200)


def test_what_others_give_back_in_a_moment_is_waited_for(timed):
    world = timed(PATIENT, models="")
    world.others = 600
    world.begin("a", size=500)
    world.begin("too large for the machine", size=1200)
    world.loop.advance(1)
    assert isinstance(world.failure("too large for the machine"), InsufficientMemory)
    world.others = 0
    world.loop.advance(1)
    assert world.loaded == ["a"]
    world.others = 600
    world.begin("b", size=500)
    world.loop.advance(6)
    assert isinstance(world.failure("b"), InsufficientMemory)


def test_a_limit_that_shrinks_waits_for_those_who_are_spared(timed):
    world = timed(models="max_loaded: 3\n")
    world.once("a")
    world.loop.advance(20)
    world.once("b", "c")
    world.loop.do(world.change, "max_loaded: 1\n")
    world.loop.advance(9.9)
    assert world.loaded == ["a", "b", "c"]
    world.loop.advance(0.2)
    assert world.loaded == ["b", "c"]
    world.loop.advance(20)
    assert world.loaded == ["c"]


# -- what workers are promised


def grown(world, name):
    return world.worker(name).budgets[-1]


def ask(world, name, gib, id=7):
    world.loop.do(world.worker(name).need, gib * GIB, id)
    world.loop.settle()
    answers = [budget for budget in world.worker(name).budgets if budget.answers == id]
    return answers[-1] if answers else grown(world, name)


def test_a_load_is_promised_its_bytes_and_told_what_it_could_have_at_best(timed):
    world = timed(AT_ONCE, models="")
    world.once("a")
    world.once("b", size=200)
    first = world.worker("b").budgets[0]
    assert (first.bytes, first.cache_bytes, first.answers) == (200 * GIB, GIB, 0)
    assert first.most == 1000 * GIB - 1 - GIB + PROCESS_BYTES, "with the process of a gone"


def test_a_need_is_granted_from_what_is_free(timed):
    world = timed(AT_ONCE, models="")
    world.begin("a")
    granted = ask(world, "a", 300)
    assert (granted.bytes, granted.answers) == (300 * GIB, 7)
    world.begin("b", size=690)
    assert "b" in world.loaded
    assert ask(world, "a", 400, id=8).bytes == 300 * GIB, "b was promised the rest"
    assert grown(world, "a").answers == 8


def test_a_need_has_idle_models_evicted_only_if_that_helps(timed):
    world = timed(AT_ONCE, models="")
    world.once("idle", size=300)
    world.begin("busy", size=300)
    world.begin("a", size=300)
    assert ask(world, "a", 750).bytes == 300 * GIB
    assert "idle" in world.loaded
    assert ask(world, "a", 650).bytes == 650 * GIB
    assert "idle" not in world.loaded


def test_a_need_that_was_denied_is_granted_once_there_is_room(timed):
    world = timed(AT_ONCE, models="")
    world.begin("busy", size=600)
    world.begin("a", size=300)
    assert ask(world, "a", 500).bytes == 300 * GIB
    world.end("busy")
    later = grown(world, "a")
    assert (later.bytes, later.answers) == (500 * GIB, 7)
    assert world.loaded == ["a"]


def test_a_need_that_waits_for_a_time_is_looked_at_again_after_a_use_meanwhile(timed):
    world = timed(models="")
    world.once("b", size=500)
    world.begin("a", size=400)
    ask(world, "a", 700)
    world.loop.advance(20)
    world.once("b", size=500)
    world.loop.advance(29)
    assert grown(world, "a").bytes == 400 * GIB
    world.loop.advance(2)
    assert grown(world, "a").bytes == 700 * GIB


def test_a_need_that_waits_follows_what_other_processes_give_back(timed):
    world = timed(PATIENT, models="")
    world.begin("b", size=200)
    world.begin("a", size=200)
    world.others = 450
    assert ask(world, "a", 450).answers == 0, "it waits"
    world.loop.advance(50)
    assert grown(world, "a").bytes == 200 * GIB
    world.others = 0
    world.loop.advance(10)
    assert grown(world, "a").bytes == 450 * GIB
    assert world.residency._offering is None, "nobody waits any more"


def test_a_small_need_leaves_a_larger_one_waiting(timed):
    world = timed(models="")
    world.once("b", size=500)
    world.begin("a", size=300)
    assert ask(world, "a", 700, id=7).answers == 0
    granted = ask(world, "a", 350, id=8)
    assert (granted.bytes, granted.answers) == (350 * GIB, 8)
    assert ask(world, "a", 600, id=9).bytes == 350 * GIB, "a smaller one that waits too"
    world.loop.advance(31)
    assert grown(world, "a").bytes == 700 * GIB


def test_a_need_that_waits_does_not_wait_for_the_room_of_a_larger_one(timed):
    world = timed(PATIENT, models="")
    world.begin("busy", size=500)
    world.begin("a", size=300)
    world.others = 100
    assert ask(world, "a", 700, id=7).answers == 0
    assert ask(world, "a", 400, id=8).answers == 0
    world.others = 0
    world.loop.advance(31)
    assert (grown(world, "a").bytes, grown(world, "a").answers) == (400 * GIB, 8)
    world.end("busy")
    assert (grown(world, "a").bytes, grown(world, "a").answers) == (700 * GIB, 7)


def test_a_need_of_a_request_that_has_left_evicts_nobody(timed):
    world = timed(PATIENT, models="")
    world.begin("b", size=500)
    world.begin("a", size=300)
    assert ask(world, "a", 700, id=7).answers == 0
    world.worker("a").ended.add(7)
    world.end("b")
    assert (grown(world, "a").bytes, world.loaded) == (300 * GIB, ["a", "b"])


def test_a_need_that_waits_is_denied_when_policy_stops_waiting(timed):
    world = timed(PATIENT, models="")
    world.begin("b", size=500)
    world.begin("a", size=300)
    assert ask(world, "a", 700, id=7).answers == 0
    world.memory = AT_ONCE
    world.loop.do(world.change, "")
    world.loop.settle()
    assert 7 in [budget.answers for budget in world.worker("a").budgets]
    assert grown(world, "a").bytes == 300 * GIB


def test_a_need_that_never_fits_does_not_hide_one_that_may(timed):
    world = timed(models="")
    world.once("b", size=500)
    world.begin("a", size=300)
    for size, id in ((5000, 7), (700, 8), (5000, 9)):
        assert ask(world, "a", size, id).bytes == 300 * GIB
    assert grown(world, "a").answers == 9
    world.loop.advance(31)
    assert grown(world, "a").bytes == 700 * GIB


def test_what_a_load_has_read_by_now_is_counted_once(timed):
    world = timed(PATIENT, models="")
    world.once("idle", size=100)
    world.begin("a", size=100)
    world.processes.gate.clear()
    world.begin("b", size=500)
    world.processes.read = 490
    assert ask(world, "a", 390).bytes == 390 * GIB
    assert "idle" in world.loaded
    assert ask(world, "a", 490, id=8).bytes == 490 * GIB
    assert "idle" not in world.loaded, "the rest of b is still kept for it"
    world.processes.read = 900
    assert world.residency._inventory.free(world.policies) == -391 * GIB - 1
    world.processes.read = 0
    world.processes.gate.set()
    world.loop.settle()
    assert "b" in world.loaded


@pytest.fixture
def evicting(timed):
    """`c` is about to leave for `b` of 750 GiB, and 1000 - 750 - 100 are to spare beside `a`."""
    world = timed(PATIENT, models="")
    world.once("c", size=400)
    world.begin("a", size=100)

    async def slowly():
        world.processes.leaks = 401 * GIB
        await asyncio.sleep(4)
        world.processes.leaks = 0

    world.processes.before_stop = slowly
    world.begin("b", size=750)
    assert world.loaded == ["a"]
    return world


def test_a_need_does_not_wait_for_an_eviction_that_it_does_not_need(evicting):
    assert ask(evicting, "a", 110).bytes == 110 * GIB
    evicting.loop.advance(5)
    assert evicting.loaded == ["a", "b"]


def test_what_an_eviction_is_for_is_not_given_to_a_need_meanwhile(evicting):
    assert ask(evicting, "a", 200).bytes == 200 * GIB
    assert ask(evicting, "a", 250, id=8).bytes == 200 * GIB, "50 more of 48 to spare"
    assert ask(evicting, "a", 150, id=9).answers == 9, "it has that already"
    evicting.loop.advance(5)
    assert evicting.loaded == ["a", "b"]
    assert grown(evicting, "a").bytes == 200 * GIB
    evicting.end("b")
    evicting.loop.advance(5)
    assert grown(evicting, "a").bytes == 250 * GIB


@pytest.mark.parametrize(
    ("after", "left"),
    [(3, ["a", "b", "idle", "other"]), (5, ["a", "b", "other"]), (99, ["a", "b"])],
)
def test_a_need_whose_request_leaves_meanwhile_evicts_nobody_more(timed, after, left):
    """The eviction of `c` for `b` takes 4 s, and so do those for the need behind it."""
    world = timed(PATIENT, models="")
    world.once("c", "idle", "other", size=100)
    world.begin("a", size=100)

    async def slowly():
        await asyncio.sleep(4)

    world.processes.before_stop = slowly
    world.begin("b", size=600)
    ask(world, "a", 300, id=7)
    world.loop.advance(after)
    world.worker("a").ended.add(7)
    world.loop.advance(20)
    assert world.loaded == left
    assert world.worker("a").budgets[-1].bytes == (300 if after > 20 else 100) * GIB


def test_an_idle_worker_goes_back_to_its_first_budget(timed):
    world = timed(PATIENT, models="")
    world.once("a")
    ask(world, "a", 900)
    world.others = 50
    world.begin("c")
    world.begin("b")
    assert "a" not in world.loaded, "c had a evicted"
    world.once("a")
    ask(world, "a", 500)
    world.loop.do(world.worker("a").observed)
    assert grown(world, "a").bytes == 100 * GIB
    assert world.residency._inventory.free(world.policies) == (950 - 303) * GIB - 1


def rest(world, after=0.0):
    """`a` has nothing to do for so many seconds, then begins again; what it is promised, in GiB."""
    world.end("a")
    world.loop.do(world.worker("a").observed)
    assert grown(world, "a").bytes == 100 * GIB
    world.loop.advance(after)
    world.begin("a")
    return grown(world, "a").bytes // GIB


@pytest.fixture
def asking(timed):
    """`a` has asked for 140 GiB, 40 more than it has at first, and got them."""
    world = timed(AT_ONCE, models="defaults: {ttl: 1h}\n")
    world.begin("a")
    assert ask(world, "a", 140).bytes == 140 * GIB
    return world


def test_who_begins_again_is_promised_what_he_needed_and_some_more(asking):
    assert rest(asking, after=300) == 150
    assert rest(asking, after=300) == 150, "that does not grow by itself"
    assert rest(asking, after=1) == 100, "nor lasts it for ever"


def test_if_that_is_little_of_what_is_free(asking):
    asking.begin("b", size=700)
    assert rest(asking) == 100


def test_nor_is_what_a_prompt_needed_that_was_only_read_to_be_kept(timed):
    world = timed(AT_ONCE, models="defaults: {ttl: 1h}\n")
    world.begin("a")
    worker = world.worker("a")
    world.loop.do(worker.on_need, worker, ipc.Need(7, 140 * GIB, spares=True))
    world.loop.settle()
    assert 140 * GIB in [budget.bytes for budget in worker.budgets]
    assert rest(world) == 100


def test_not_while_another_waits_for_memory(asking):
    asking.memory = WAIT
    asking.loop.do(asking.change, "defaults: {ttl: 1h}\n")
    asking.begin("b", size=200)
    assert ask(asking, "b", 900).answers == 0, "it waits"
    assert rest(asking) == 100


def test_nor_while_one_has_to_leave_for_another(evicting):
    assert ask(evicting, "a", 110).bytes == 110 * GIB
    assert rest(evicting) == 100


def test_a_use_in_which_nothing_ran_leaves_no_more_promised(asking):
    assert rest(asking) == 150
    asking.end("a")
    asking.loop.advance(0.5)
    assert grown(asking, "a").bytes == 150 * GIB, "it may still tell"
    asking.loop.advance(1)
    assert grown(asking, "a").bytes == 100 * GIB


def test_limits_of_workers_follow_an_edit(timed):
    world = timed(AT_ONCE, models="")
    world.begin("a")
    ask(world, "a", 300)
    world.memory = f"{AT_ONCE}worker_limits: {{mlx_memory_limit: 200GiB, mlx_cache_limit: 2GiB}}\n"
    world.loop.do(world.change, "")
    now = grown(world, "a")
    assert (now.bytes, now.cache_bytes, now.most) == (200 * GIB, 2 * GIB, 200 * GIB)
    assert ask(world, "a", 250).bytes == 200 * GIB
    world.begin("b", size=300)
    refused = world.failure("b")
    assert refused.policy is not None
    assert refused.policy.key == "memory.worker_limits.mlx_memory_limit"


def test_a_larger_cache_is_given_only_where_there_is_room(timed):
    world = timed(AT_ONCE, models="")
    world.begin("a", size=900)
    world.memory = f"{AT_ONCE}worker_limits: {{mlx_cache_limit: 500GiB}}\n"
    world.loop.do(world.change, "")
    assert grown(world, "a").cache_bytes == GIB


def test_a_need_is_answered_without_a_reading_and_after_the_worker_has_gone(timed):
    world = timed(AT_ONCE, models="")
    world.begin("a")
    world.read = lambda: None
    world.residency._inventory.read_memory = world.read
    assert ask(world, "a", 5000).bytes == 5000 * GIB
    worker = world.worker("a")
    world.loop.do(world.processes.crash, card("a").spec)
    world.loop.do(worker.on_need, worker, ipc.Need(9, 1))
    world.loop.settle()
    assert 9 not in [budget.answers for budget in worker.budgets]


def test_a_worker_that_ran_out_of_memory_is_reported_and_its_room_is_free(timed):
    world = timed(PATIENT, models="max_loaded: 1\n")
    told: list[str] = []
    world.residency.on_memory_error = told.append
    world.once("a")
    world.loop.do(world.processes.crash, card("a").spec, True)
    assert told == ["a"]
    assert world.residency.residents() == []
    world.begin("b")
    world.loop.do(world.processes.crash, card("b").spec)
    assert told == ["a"]


def test_promises_of_many_loads_at_once_never_pass_what_there_is(timed):
    world = timed(AT_ONCE, models=LOAD)
    world.processes.gate.clear()
    for name in "abcdefgh":
        world.begin(name, size=240)
    refused = [name for name in "abcdefgh" if world.tasks[name].done()]
    assert refused == ["e", "f", "g", "h"]
    assert all(isinstance(world.failure(name), InsufficientMemory) for name in refused)


def test_waits_end_in_the_order_in_which_they_began(timed):
    world = timed(PATIENT, models="max_loaded: 1\n")
    world.begin("a")
    for name in ("b", "c", "d"):
        world.begin(name)
    order = ["a", "b", "c", "d"]
    for this, after in pairwise(order):
        assert world.loaded == [this]
        world.end(this)
        assert world.loaded == [after]


def test_an_older_request_does_not_bring_older_policies_back(timed, tmp_path):
    world = timed(PATIENT, models="max_loaded: 1\n")
    older = load(write_policies(tmp_path / "older", {"models": "max_loaded: 9\n"}))
    world.loop.do(world.change, "max_loaded: 1\n")
    world.once("a")
    world.policies = older
    world.begin("b")
    assert world.loaded == ["b"]


def test_a_need_is_judged_after_the_decision_that_is_under_way(timed):
    world = timed(PATIENT, models="")
    world.once("idle", size=400)
    world.begin("a", size=400)

    async def slow():
        await asyncio.sleep(2)

    world.processes.before_stop = slow
    world.begin("b", size=500)
    assert ask(world, "a", 500).answers == 0, "the bytes of idle are promised to b"
    world.loop.advance(3)
    assert world.loaded == ["a", "b"]
    assert (grown(world, "a").answers, grown(world, "a").bytes) == (0, 400 * GIB), "it waits"
