"""Workers that fail, on a virtual clock: when the next one starts, and what requests are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.control.breaker import State
from mlxd.control.exit import Exit
from mlxd.control.judgement import Cause
from mlxd.control.process import protocol_of_fresh
from mlxd.core.errors import (
    BreakerOpen,
    InsufficientMemory,
    ModelLoadFailed,
    ModelQuarantined,
    WorkerCrashed,
)
from mlxd.core.models import ModelCard
from mlxd.ipc import messages as ipc
from tests.support.engines import Engine, World, card, dies

PATIENT_MEMORY = (
    "eviction: {protect_recent: 0s, min_residency: 0s}\nreserve: {system: 1B, when_full: wait}\n"
)
PATIENT_REQUESTS = {"timeouts": "model_load: 10m\n"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.load_seconds = 0.0
    yield made
    made.close()


def fail_to_open(world: World) -> None:
    """Requests come as soon as they may."""
    world.fate = dies()
    for _ in range(6):
        world.answer()
    assert world.slot().state is State.OPEN


def test_the_whole_series_from_the_first_crash_to_the_quarantine(world: World) -> None:
    world.fate = dies()
    for _ in range(6):
        assert isinstance(world.answer(), ModelLoadFailed)
    assert world.starts == [0, 2, 6, 14, 30, 62]
    assert world.slot().state is State.OPEN
    for probes in range(1, 6):
        assert isinstance(world.answer(), BreakerOpen)
        world.advance(60)
        assert len(world.starts) == 6 + probes
    assert world.starts[6:] == [122, 182, 242, 302, 362]
    assert world.slot().state is State.QUARANTINED
    refused = world.answer()
    assert isinstance(refused, ModelQuarantined)
    assert refused.retry_after == 3600
    world.advance(3599)
    assert len(world.starts) == 11
    assert isinstance(world.answer(), ModelQuarantined)
    world.fate = lambda engine, when: None
    world.advance(1)
    assert world.answer() is world.engines[-1]
    told = [(data["from"], data["to"]) for data in world.of("breaker")]
    probed = [("open", "probing"), ("probing", "open")] * 4
    probed += [("open", "probing"), ("probing", "quarantined"), ("quarantined", "idle")]
    assert told == [("starting", "open"), *probed]
    restarts = [data["failures"] for data in world.of("restart")]
    assert restarts[:10] == list(range(1, 11))
    assert [data["after"] for data in world.of("restart")][:6] == [2, 4, 8, 16, 32, 60]


def test_a_probe_that_makes_a_token_closes_it_and_the_next_failure_opens_it_again(
    world: World,
) -> None:
    fail_to_open(world)
    world.fate = lambda engine, when: None
    world.advance(60)
    assert world.slot().state is State.SERVING
    assert world.of("breaker")[-1] | {"to": "serving", "failures": 6} == world.of("breaker")[-1]
    world.loop.do(world.engines[-1].ends, -11)
    assert (world.slot().state, world.slot().failures) == (State.OPEN, 7)


def test_what_a_request_is_told_says_why_when_and_what_to_do(world: World) -> None:
    fail_to_open(world)
    world.advance(20)
    refused = world.answer()
    assert isinstance(refused, BreakerOpen)
    assert refused.retry_after == 40
    assert "SIGSEGV" in refused.message
    assert "6 times in a row" in refused.message
    assert "the next probe is in 40 s" in refused.message
    assert "mlxd models reset a" in refused.message
    assert refused.policy is not None
    assert refused.policy.key == "supervision.worker.breaker.open"


def test_a_request_waits_for_the_back_off_of_a_crash(world: World) -> None:
    assert world.answer() is world.engines[0]
    world.loop.do(world.engines[0].ends, -11)
    assert world.slot().state is State.BACKING_OFF
    world.advance(0.5)
    began = world.loop.now
    assert world.answer() is world.engines[1]
    assert world.loop.now - began == 1.5
    assert world.slot().restarts == 1


def test_a_request_after_the_back_off_starts_it_at_once(world: World) -> None:
    world.answer()
    world.loop.do(world.engines[0].ends, 70)
    world.advance(30)
    assert len(world.engines) == 1, "nobody asks for it"
    began = world.loop.now
    world.answer()
    assert world.loop.now == began


def test_a_request_waits_for_a_back_off_no_longer_than_for_a_load(world: World) -> None:
    world.edit(
        timeouts="model_load: 5s\n", supervision="worker: {backoff: {base: 60s, max: 60s}}\n"
    )
    world.answer()
    world.loop.do(world.engines[0].ends, -11)
    began = world.loop.now
    refused = world.answer()
    assert world.loop.now - began == 5
    assert isinstance(refused, WorkerCrashed)
    assert refused.retry_after == 60, "as of when it began to wait"
    assert "SIGSEGV" in refused.message
    assert world.slot().failures == 1, "nothing was started that could have been late"


def unreadable(engine: Engine, when: str) -> None:
    """Its worker says why."""
    error = ModelLoadFailed(f"model '{engine.name}' could not be loaded: no tokenizer")
    error.final = True
    raise error


def test_a_model_that_says_why_it_cannot_be_loaded_is_refused_at_once_meanwhile(
    world: World,
) -> None:
    world.fate = unreadable
    assert isinstance(world.answer(), ModelLoadFailed)
    began = world.loop.now
    refused = world.answer()
    assert isinstance(refused, ModelLoadFailed)
    assert (world.loop.now, refused.retry_after) == (began, 2)
    assert "no tokenizer" in refused.message
    assert len(world.starts) == 1
    world.advance(2)
    world.answer()
    assert len(world.starts) == 2
    assert world.slot().failures == 2


def test_between_the_attempts_of_one_load_is_the_longer_of_both_pauses(world: World) -> None:
    load = "load: {max_parallel: 9, retry: {max: 3, backoff: 3s}}\n"
    world.edit(models=load)
    world.fate = dies()
    assert isinstance(world.answer(), ModelLoadFailed)
    assert world.starts == [0, 3, 9, 21], "3, 6 and 12 s against 2, 4 and 8"
    world.loop.do(world.supervisor.reset, world.slot().spec)
    world.edit(models=load, supervision="worker: {backoff: {base: 10s}}\n")
    world.answer()
    assert [at - world.starts[4] for at in world.starts[4:]] == [0, 10, 30, 70]


def test_a_load_stops_trying_when_the_breaker_opens(world: World) -> None:
    world.edit(
        models="load: {max_parallel: 9, retry: {max: 9, backoff: 1s}}\n",
        timeouts="model_load: 1h\n",
    )
    world.fate = dies()
    refused = world.answer()
    assert isinstance(refused, BreakerOpen)
    assert world.starts == [0, 2, 6, 14, 30, 62]
    assert world.loop.now - world.began == 62


def test_a_load_that_took_too_long_has_failed(world: World) -> None:
    world.edit(timeouts="model_load: 5s\n")
    world.load_seconds = 100.0
    assert isinstance(world.answer(), ModelLoadFailed)
    assert (world.slot().state, world.slot().failures) == (State.BACKING_OFF, 1)
    assert world.slot().reason == "it was not loaded in time"


def test_a_load_that_nobody_waits_for_has_not_failed(world: World) -> None:
    world.load_seconds = 10.0
    asking = world.ask()
    world.advance(1)
    world.loop.run(world.residency.close(0.0))
    asking.cancel()
    world.loop.settle()
    assert world.slot().failures == 0


def test_a_start_that_was_given_up_leaves_nothing(world: World) -> None:
    world.load_seconds = 10.0
    world.answer()
    world.loop.run(world.supervisor.stop(world.slot().spec, 1.0))
    budget = ipc.Budget(1, 1, 0)
    for turns in range(6):
        starting = world.loop.create_task(
            world.supervisor.start(card("a"), budget, lambda engine: None)
        )
        world.loop.settle(turns)
        starting.cancel()
        world.loop.settle()
        assert (world.slot().state, world.slot().failures) == (State.IDLE, 0)
    assert not any(engine.alive for engine in world.engines)


def test_a_worker_that_the_daemon_itself_ends_while_it_loads_has_not_failed(world: World) -> None:
    world.load_seconds = 10.0
    asking = world.ask()
    world.advance(1)
    world.loop.do(world.engines[0].kill)
    world.loop.settle()
    assert isinstance(asking.exception(), ModelLoadFailed)
    assert world.slot().failures == 0


def test_a_wish_to_stop_is_no_failure(world: World) -> None:
    world.answer()
    world.loop.run(world.supervisor.stop(world.slot().spec, 1.0))
    assert (world.slot().state, world.slot().failures) == (State.IDLE, 0)
    assert world.counts.exits == [("a", "stopped")]


def test_one_end_is_one_failure_whoever_tells_of_it(world: World) -> None:
    world.fate = dies(70)
    world.answer()
    assert world.slot().failures == 1
    assert world.slot().reason == "exit 70"


def test_a_worker_that_is_gone_late_takes_the_next_one_out_of_nothing(world: World) -> None:
    world.kept = {"a"}
    first = world.answer()
    first.lingers = True
    world.loop.do(first.condemn, "stalled")
    second = world.answer()
    assert second is not first
    world.loop.do(lambda: first.ends(-9, verdict="stalled"))
    world.loop.settle()
    assert world.supervisor.serving(second.spec) is second
    assert (world.slot().failures, world.slot().lost) == (1, False)
    world.advance(60)
    assert world.answer() is second
    assert second.alive


def test_nor_does_it_while_the_next_one_loads(world: World) -> None:
    first = world.answer()
    first.lingers = True
    world.loop.do(first.condemn, "stalled")
    world.load_seconds = 5.0
    asking = world.ask()
    world.advance(1)
    world.loop.do(lambda: first.ends(-9, verdict="stalled"))
    assert world.slot().state is State.STARTING
    world.advance(5)
    assert asking.result() is world.engines[1]
    assert world.slot().state is State.SERVING


# -- time that is spent on loads


def test_loads_that_hang_open_the_breaker(world: World) -> None:
    world.load_seconds = 10_000.0
    for n in range(1, 7):
        assert isinstance(world.answer(), ModelLoadFailed)
        assert world.slot().failures == n
    assert world.slot().state is State.OPEN


def test_loads_that_fail_at_their_end_open_the_breaker(world: World) -> None:
    world.load_seconds, world.fate = 280.0, dies()
    for _ in range(6):
        world.advance(25)
        assert isinstance(world.answer(), ModelLoadFailed)
    assert world.slot().state is State.OPEN


def test_so_do_those_that_waited_long_for_room(world: World) -> None:
    world.edit(**PATIENT_REQUESTS, memory=PATIENT_MEMORY)
    world.fate = lambda engine, when: dies()(engine, when) if engine.name == "a" else None
    for n in range(1, 7):
        held, hold = hold_room(world)
        asking = world.ask()
        world.advance(400)
        assert not asking.done()
        world.loop.do(hold.set)
        world.loop.settle()
        assert isinstance(asking.exception(), ModelLoadFailed)
        assert held.done()
        assert world.slot().failures == n
    assert world.slot().state is State.OPEN


def test_a_time_without_a_failure_begins_when_it_serves(world: World) -> None:
    world.load_seconds, world.fate = 280.0, dies()
    world.answer()
    world.fate = lambda engine, when: None
    engine = world.answer()
    assert not isinstance(engine, Exception)
    world.advance(290)
    assert world.slot().failures == 1
    world.advance(10)
    assert world.slot().failures == 0


def test_a_reset_while_it_loads_forgets_what_was(world: World) -> None:
    world.edit(
        models="load: {max_parallel: 9, retry: {max: 1, backoff: 1s}}\n",
        timeouts="model_load: 1h\n",
    )
    world.load_seconds, world.fate = 400.0, dies()
    world.answer()
    assert world.slot().failures == 2
    asking = world.ask()
    world.advance(100)
    world.loop.do(world.supervisor.reset, world.slot().spec)
    world.advance(310)
    assert world.slot().failures == 1
    world.advance(401)
    assert asking.done()
    assert world.slot().failures == 2, "and the time of the load is still none without a failure"


# -- several ways of loading one model


def test_a_slot_stays_while_a_load_of_it_waits_for_room(world: World) -> None:
    world.edit(memory=PATIENT_MEMORY)
    _, hold = hold_room(world)
    first = world.ask()
    world.advance(1)
    second = world.loop.create_task(lease(world, replace(card("a"), context=256)))
    world.advance(1)
    assert not first.done()
    assert [slot.spec.context for slot in world.supervisor.slots()] == [512, 512, 256]
    world.loop.do(hold.set)
    world.advance(10)
    assert {first.result().spec.context, second.result().spec.context} == {512, 256}


def test_a_start_needs_nothing_that_was_there_before(world: World) -> None:
    budget = ipc.Budget(1, 1, 0)
    engine = world.loop.run(world.supervisor.start(card("a"), budget))
    assert world.supervisor.serving(card("a").spec) is engine


def hold_room(world: World) -> tuple[asyncio.Task[Any], asyncio.Event]:
    """A model that leaves no room for another, in use until the event is set."""
    hold = asyncio.Event()
    held = world.loop.create_task(lease(world, card("big", 950), hold))
    world.loop.settle()
    assert world.slot("big").state is State.SERVING
    return held, hold


async def lease(world: World, of: ModelCard, hold: asyncio.Event | None = None) -> Any:
    async with world.residency.lease(of, None, world.policies) as held:
        worker = await held.worker()
        if hold is not None:
            await hold.wait()
        return worker


# -- the canary


def test_a_worker_serves_when_it_has_made_a_token(world: World) -> None:
    world.fate = lambda engine, when: None if when == "load" else serving.append(world.slot().state)
    serving: list[State] = []
    assert world.answer().canaries == 1
    assert serving == [State.STARTING]
    assert world.slot().state is State.SERVING


def test_a_worker_that_makes_no_token_is_ended_and_has_failed(world: World) -> None:
    def silent(engine: Engine, when: str) -> None:
        if when == "canary":
            raise WorkerCrashed("no token within 120 s")

    world.fate = silent
    failed = world.answer()
    assert isinstance(failed, ModelLoadFailed)
    assert "makes no token" in failed.message
    assert world.counts.exits == [("a", "canary")]
    assert (world.slot().failures, world.slot().state) == (1, State.BACKING_OFF)


def test_a_token_is_a_part_of_the_load_and_has_as_long(world: World) -> None:
    world.edit(timeouts="model_load: 5s\n")
    world.token_seconds = 1000.0
    assert isinstance(world.answer(), ModelLoadFailed)
    assert world.loop.now - world.began == 5
    assert (world.slot().failures, world.slot().reason) == (1, "it was not loaded in time")
    assert not world.engines[0].alive


def test_a_token_that_finds_no_memory_says_nothing_against_a_worker(world: World) -> None:
    def full(engine: Engine, when: str) -> None:
        if when == "canary":
            assert engine.on_need is None, "nobody can answer it yet"
            raise ModelLoadFailed("it generates nothing") from InsufficientMemory("none left")

    world.fate = full
    engine = world.answer()
    assert world.slot().state is State.SERVING
    assert engine.on_need is not None


# -- probes


def test_requests_that_may_join_a_probe_are_counted(world: World) -> None:
    fail_to_open(world)
    world.edit(supervision="worker: {breaker: {half_open_probes: 2}}\n")
    world.fate = lambda engine, when: None
    world.load_seconds = 5.0
    world.advance(61)
    assert world.slot().state is State.PROBING
    asking = [world.ask() for _ in range(3)]
    world.loop.settle()
    assert [task.done() for task in asking] == [False, False, True]
    refused = asking[2].exception()
    assert isinstance(refused, BreakerOpen)
    assert refused.policy is not None
    assert refused.policy.key == "supervision.worker.breaker.half_open_probes"
    world.advance(5)
    assert [task.result() for task in asking[:2]] == [world.engines[-1]] * 2


def test_a_request_that_joined_a_probe_and_left_makes_room_for_another(world: World) -> None:
    fail_to_open(world)
    world.fate = lambda engine, when: None
    world.load_seconds = 5.0
    world.advance(61)
    for _ in range(3):
        asking = world.ask()
        world.loop.settle()
        assert not asking.done()
        asking.cancel()
        world.loop.settle()
    assert world.slot().joined == 0


def test_so_does_one_whose_probe_failed(world: World) -> None:
    fail_to_open(world)
    world.load_seconds = 5.0
    for _ in range(3):
        world.advance(61)
        assert world.slot().state is State.PROBING
        assert isinstance(world.answer(), ModelLoadFailed)
        assert (world.slot().state, world.slot().joined) == (State.OPEN, 0)


def test_a_probe_whose_worker_finds_no_memory_for_a_token_is_over(world: World) -> None:
    def full(engine: Engine, when: str) -> None:
        if when == "canary":
            raise ModelLoadFailed("it generates nothing") from InsufficientMemory("none left")

    fail_to_open(world)
    world.fate = full
    world.advance(60)
    assert world.slot().state is State.SERVING
    world.loop.do(world.residency.unload, card("a"))
    world.loop.settle()
    assert (world.slot().state, world.slot().wait) == (State.OPEN, 60)
    world.fate = lambda engine, when: None
    world.advance(60)
    assert world.answer() is world.engines[-1]
    assert world.of("breaker")[-1]["to"] == "serving"


def test_a_worker_without_a_token_yet_that_fails_is_not_tried_again_at_once(world: World) -> None:
    def full(engine: Engine, when: str) -> None:
        if when == "canary":
            raise ModelLoadFailed("it generates nothing") from InsufficientMemory("none left")

    fail_to_open(world)
    world.fate = full
    world.advance(60)
    world.advance(100)
    starts = len(world.starts)
    world.loop.do(world.engines[-1].ends, -11)
    world.advance(59)
    assert (world.slot().state, len(world.starts)) == (State.OPEN, starts)
    world.advance(1)
    assert len(world.starts) == starts + 1


def test_a_probe_without_room_is_no_failed_probe_and_evicts_nobody(world: World) -> None:
    fail_to_open(world)
    world.fate = lambda engine, when: None
    assert not isinstance(world.answer("b", size=950), Exception)
    for _ in range(6):
        world.advance(60)
        assert world.slot().state is State.OPEN
    assert world.slot("b").state is State.SERVING
    world.loop.run(world.supervisor.stop(world.slot("b").spec, 1.0))
    world.advance(60)
    assert world.slot().state is State.SERVING


def test_nothing_is_awake_while_nothing_is_open(world: World) -> None:
    world.answer()
    looks = 0
    look = world.supervisor.look

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    world.supervisor.look = counted  # type: ignore[method-assign]
    world.advance(3000)
    assert looks <= 1


# -- what ends it before its time


def test_a_reset_ends_a_back_off_for_those_who_wait(world: World) -> None:
    world.answer()
    world.edit(supervision="worker: {backoff: {base: 50s}}\n")
    world.loop.do(world.engines[0].ends, -11)
    asking = world.ask()
    world.advance(1)
    assert not asking.done()
    assert world.loop.do(world.supervisor.reset, world.slot().spec)
    world.loop.settle()
    assert asking.result() is world.engines[1]
    assert not world.supervisor.reset(world.slot().spec), "it is well"


def test_a_reset_ends_an_open_breaker_and_a_quarantine(world: World) -> None:
    fail_to_open(world)
    assert world.loop.do(world.supervisor.reset, world.slot().spec)
    assert (world.slot().state, world.slot().failures) == (State.IDLE, 0)
    fail_to_open(world)
    assert [at - world.starts[6] for at in world.starts[6:]] == [0, 2, 6, 14, 30, 62]
    world.advance(5 * 60)
    assert world.slot().state is State.QUARANTINED
    world.advance(3600)
    assert world.of("breaker")[-1]["to"] == "idle", "it is told though nobody asks"
    world.loop.do(world.supervisor.reset, world.slot().spec)
    world.fate = lambda engine, when: None
    assert world.answer() is world.engines[-1]


def test_other_files_are_another_model(world: World) -> None:
    fail_to_open(world)
    world.fate = lambda engine, when: None
    assert isinstance(world.answer(), BreakerOpen)
    assert world.answer(digest="1") is world.engines[-1]
    assert [slot.name for slot in world.supervisor.slots()] == ["a"]


def test_what_fails_is_the_files_that_were_loaded(world: World) -> None:
    """They were replaced between the scan and the load."""

    async def replaced(found: ModelCard, policies: object) -> ModelCard:
        return replace(found, digest="1" * 64)

    world.residency._loads._check = replaced
    world.fate = dies()
    for scanned in "011111":
        world.answer(digest=scanned)
    assert (world.slot().state, world.slot().failures) == (State.OPEN, 6)


def test_an_edit_is_followed_by_those_who_wait(world: World) -> None:
    world.edit(supervision="worker: {backoff: {base: 50s}}\n")
    world.answer()
    world.loop.do(world.engines[0].ends, -11)
    asking = world.ask()
    world.advance(5)
    assert not asking.done()
    world.edit(supervision="worker: {backoff: {base: 3s}}\n")
    world.loop.settle()
    assert asking.done()


# -- what is to be in memory always


def test_a_preloaded_model_is_started_again_after_its_back_off(world: World) -> None:
    world.kept = {"a"}
    world.answer()
    world.answer("b")
    for engine in world.engines[:2]:
        world.loop.do(engine.ends, -11)
    world.advance(1.9)
    assert len(world.engines) == 2
    world.advance(0.1)
    world.loop.settle()
    assert world.slot("a").state is State.SERVING
    world.advance(60)
    assert world.slot("b").state is State.IDLE


def test_a_model_that_never_served_is_not_missed(world: World) -> None:
    world.kept = {"a"}
    world.fate = dies()
    world.answer()
    world.advance(100)
    assert len(world.starts) == 1


def test_a_preloaded_model_that_keeps_failing_goes_the_same_way(world: World) -> None:
    world.kept = {"a"}
    world.answer()
    world.fate = dies()
    world.loop.do(world.engines[0].ends, -11)
    world.advance(62.5)
    assert world.starts == [0, 2, 6, 14, 30, 62]
    assert world.slot().state is State.OPEN


def test_a_preloaded_model_is_tried_again_when_its_quarantine_ends(world: World) -> None:
    world.kept = {"a"}
    world.edit(supervision="worker: {breaker: {quarantine: 10m, probes: 1}}\n")
    world.answer()
    world.fate = dies()
    world.loop.do(world.engines[0].ends, -11)
    world.advance(62 + 60)
    assert world.slot().state is State.QUARANTINED
    world.fate = lambda engine, when: None
    world.advance(599)
    assert world.slot().state is State.QUARANTINED
    world.advance(1)
    assert world.slot().state is State.SERVING


def test_a_preloaded_model_without_room_is_tried_now_and_then(world: World) -> None:
    world.kept = {"a", "b"}
    world.answer()
    world.loop.do(world.engines[0].ends, -11)
    assert not isinstance(world.answer("b", size=950), Exception)
    world.residency.protect(frozenset({world.slot("b").spec}))
    world.advance(100)
    assert world.slot().state is State.IDLE
    world.loop.run(world.supervisor.stop(world.slot("b").spec, 1.0))
    world.advance(11)
    assert world.slot().state is State.SERVING


def test_a_defect_of_one_start_neither_spins_nor_ends_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.kept = {"a", "b"}
    world.answer("a")
    world.answer("b")
    load, asked = world.residency.load, 0

    async def broken(card: ModelCard, *others: Any) -> None:
        nonlocal asked
        if card.name == "a":
            asked += 1
            raise RuntimeError("a defect")
        await load(card, *others)

    monkeypatch.setattr(world.residency, "load", broken)
    for engine in world.engines[:2]:
        world.loop.do(engine.ends, -11)
    world.advance(32.5)
    assert world.slot("b").state is State.SERVING
    assert asked == 4, "after 2 s, and every 10 s"


def test_what_a_client_had_unloaded_stays_so(world: World) -> None:
    world.kept = {"a"}
    world.answer()
    world.loop.run(world.supervisor.stop(world.slot().spec, 1.0))
    world.advance(100)
    assert len(world.engines) == 1
    world.loop.do(world.answer().ends, -11)
    world.loop.run(world.supervisor.stop(world.slot().spec, 1.0))
    world.advance(100)
    assert len(world.engines) == 2, "as little as one that died a moment before"


# -- what is told


def test_a_load_and_an_end_are_told_with_their_numbers(world: World) -> None:
    world.load_seconds = 1.5
    engine = world.answer()
    engine.victims = 3
    engine.step = 77
    world.loop.do(engine.ends, -6)
    size = engine.memory.active
    assert world.of("load") == [{"model": "a", "seconds": 1.5, "bytes": size}]
    (up,) = world.of("worker_up")
    assert up == {"model": "a", "pid": engine.pid, "load_seconds": 1.5, "spare": False}
    assert world.of("worker_down") == [
        {
            "model": "a", "pid": engine.pid, "reason": "SIGABRT", "status": -6, "running": 3,
            "step": 77, "memory": size, "stderr": engine.stderr,
        }
    ]  # fmt: skip
    assert world.counts.exits == [("a", "SIGABRT")]
    world.answer()
    assert world.counts.restarts == ["a"]


def test_an_eviction_is_told_with_its_reason_and_its_bytes(world: World) -> None:
    told: list[tuple[str, int, Cause]] = []
    world.residency.on_evicted = lambda *what: told.append(what)
    size = world.answer("a", size=600).memory.active
    world.answer("b", size=600)
    ((name, held, cause),) = told
    assert (name, held) == ("a", size)
    assert (cause.reason, cause.wanted_by) == ("load", "b")
    assert cause.needed > cause.available > 0
    assert cause.policy is not None
    assert cause.policy.key == "memory.reserve.system"


def test_whoever_takes_its_time_to_end_is_killed_with_the_others(world: World) -> None:
    """An eviction's victim as well as those that end with the daemon."""
    for name in "abc":
        assert world.answer(name).name == name
    evicted, ends, _ = world.engines
    evicted.dawdles = ends.dawdles = True
    stops = [world.loop.create_task(world.supervisor.stop(evicted.spec, 60.0))]
    world.loop.settle()
    stops.append(world.loop.create_task(world.supervisor.stop_all(60.0)))
    world.loop.settle()
    assert [stop.done() for stop in stops] == [False, False]
    began = world.loop.now
    world.loop.do(world.supervisor.kill_all)
    for stop in stops:
        world.loop.run(stop)
    assert world.loop.now == began
    killed, ended = Exit(-9, asked=True), Exit(0, asked=True)
    assert [engine.exit for engine in world.engines] == [killed, killed, ended]


def test_a_dead_worker_is_in_no_list(world: World) -> None:
    engine = world.answer()
    world.loop.do(engine.ends, -9)
    assert world.supervisor.workers() == []
    assert world.slot().pid is None
    assert asyncio.isfuture(engine._failing)


def test_the_next_worker_knows_that_grammars_have_held_answers(world: World) -> None:
    assert isinstance(world.answer(), Engine)
    assert not world.known[-1].held
    first: Any = world.engines[0]
    world.loop.do(first.on_grammar)
    world.loop.do(first.ends, -11)
    world.advance(5)
    world.answer()
    assert [known.held for known in world.known] == [False, True]


@pytest.mark.parametrize("final", [False, True])
def test_a_load_that_fails_after_an_upgrade_says_what_to_do(world: World, final: bool) -> None:
    """Where the files are gone, a worker may say that the model is none."""
    world.supervisor._installed = lambda: "mlxd has been installed anew; restart the daemon"
    world.fate = unreadable if final else dies()
    refused = world.answer()
    assert isinstance(refused, ModelLoadFailed)
    assert refused.message.endswith("; mlxd has been installed anew; restart the daemon")


@pytest.mark.parametrize("fresh", ["of another", "gone"])
def test_a_load_that_no_worker_could_come_of_after_an_upgrade_evicts_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, fresh: str
) -> None:
    def protocol() -> int:
        if fresh == "gone":
            raise FileNotFoundError
        return ipc.PROTOCOL + 1

    there = world.answer("there", size=600)
    world.supervisor._installed = lambda: "mlxd has been installed anew; restart the daemon"
    monkeypatch.setattr("mlxd.control.supervisor.protocol_of_fresh", protocol)
    refused = world.answer("next", size=600)
    assert isinstance(refused, ModelLoadFailed)
    assert refused.message.endswith(world.supervisor._installed())
    assert refused.final is (fresh == "of another"), "an upgrade that is under way may end well"
    assert (there.alive, len(world.engines)) == (True, 1)
    world.supervisor._spared = lambda: True
    assert world.answer("next", size=600) is world.engines[1]
    assert not there.alive, "a process that was kept is of this mlxd"


def test_the_files_say_which_protocol_a_fresh_worker_speaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert protocol_of_fresh() == ipc.PROTOCOL
    monkeypatch.setattr(ipc, "__file__", str(tmp_path / "messages.py"))
    with pytest.raises(FileNotFoundError):
        protocol_of_fresh()
    Path(ipc.__file__).write_text("import re\nPROTOCOL = 12\n")
    assert protocol_of_fresh() == 12
    Path(ipc.__file__).write_text("from elsewhere import PROTOCOL\n")
    assert protocol_of_fresh() is None
