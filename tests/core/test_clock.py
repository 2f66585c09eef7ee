import asyncio

import pytest

from mlxd.core.clock import LOOKS, AwakeClock, ManualClock, within
from tests.support.virtual_time import VirtualLoop


def live(machine, clock, seconds):
    """Let time pass with somebody looking, as the daemon does."""
    for _ in range(round(seconds / LOOKS)):
        machine.advance(LOOKS)
        clock.monotonic()


def test_time_in_which_somebody_looks_passes():
    machine = ManualClock()
    clock = AwakeClock(machine)
    began = clock.monotonic()
    live(machine, clock, 60)
    assert clock.monotonic() - began == pytest.approx(60)
    assert clock.lost == 0


def test_time_in_which_nobody_could_look_is_lost():
    machine = ManualClock()
    clock = AwakeClock(machine)
    began = clock.monotonic()
    live(machine, clock, 10)
    machine.advance(3600)
    assert clock.monotonic() - began == pytest.approx(10 + LOOKS)
    assert clock.lost == pytest.approx(3600 - LOOKS)
    live(machine, clock, 10)
    assert clock.monotonic() - began == pytest.approx(20 + LOOKS)


def test_a_look_that_is_a_little_late_loses_nothing():
    machine = ManualClock()
    clock = AwakeClock(machine)
    machine.advance(LOOKS + 1.9)
    clock.monotonic()
    assert clock.lost == 0


def test_a_loop_that_is_always_slow_has_no_longer_deadlines():
    machine = ManualClock()
    clock = AwakeClock(machine)
    began = clock.monotonic()
    for _ in range(100):
        machine.advance(1.2)
        clock.monotonic()
    assert clock.monotonic() - began == pytest.approx(120)


def test_dates_are_the_machines():
    machine = ManualClock()
    assert AwakeClock(machine).wall() == machine.wall()


@pytest.fixture
def loop():
    made = VirtualLoop()
    yield made
    made.close()


def waiting(loop, clock, seconds):
    async def wait():
        async with within(clock, seconds):
            await asyncio.Event().wait()

    return loop.create_task(wait())


def test_a_limit_passes_on_time(loop):
    task = waiting(loop, loop, 5.0)
    loop.advance(4.9)
    assert not task.done()
    loop.advance(0.2)
    assert isinstance(task.exception(), TimeoutError)


def test_a_limit_is_moved_by_the_time_that_was_lost(loop):
    machine = ManualClock()
    task = waiting(loop, machine, 5.0)
    loop.settle()
    machine.advance(2.0)
    loop.advance(3600)
    assert not task.done()
    machine.advance(3.0)
    loop.advance(5)
    assert isinstance(task.exception(), TimeoutError)


def test_what_ends_in_time_leaves_no_timer(loop):

    async def work():
        async with within(loop, 5.0):
            await asyncio.sleep(1.0)
        return loop.now

    assert loop.run(work()) == 1001.0
    loop.advance(10)
