import pytest

from mlxd.control.sleep import Grace, machine_asleep
from mlxd.core.clock import LOOKS, AwakeClock, ManualClock

GRACE = 20.0


class Machine:
    """A machine that can sleep, and a daemon on it that can be stopped."""

    def __init__(self):
        self.clock = ManualClock()
        self.slept = 77.0
        self.awake = AwakeClock(self.clock)
        self.grace = Grace(self.awake, lambda: GRACE, lambda: self.slept)
        self.wakes: list[float] = []
        self.grace.on_wake = self.wakes.append

    def live(self, seconds):
        for _ in range(round(seconds / LOOKS)):
            self.clock.advance(LOOKS)
            self.grace.look()


def test_a_machine_that_is_awake_gives_no_grace():
    machine = Machine()
    machine.live(3600)
    assert not machine.grace.calm()
    assert machine.wakes == []


def test_after_a_sleep_there_is_a_grace_and_then_none():
    machine = Machine()
    machine.live(10)
    machine.slept += 3600
    assert machine.grace.calm()
    assert machine.wakes == [pytest.approx(3600)]
    machine.live(GRACE - 1)
    assert machine.grace.calm()
    machine.live(2)
    assert not machine.grace.calm()
    assert len(machine.wakes) == 1


def test_a_daemon_that_was_stopped_sees_it_at_its_first_question():
    machine = Machine()
    machine.live(10)
    machine.clock.advance(60)
    assert machine.grace.calm()
    assert machine.wakes == [pytest.approx(60 - LOOKS)]


def test_a_stop_that_its_clock_has_seen_first_is_a_wake_all_the_same():
    machine = Machine()
    machine.clock.advance(60)
    machine.awake.monotonic()
    assert machine.grace.calm()
    assert len(machine.wakes) == 1


def test_a_short_hiccup_is_no_sleep():
    machine = Machine()
    machine.live(10)
    machine.clock.advance(2)
    machine.slept += 1
    assert not machine.grace.calm()
    assert machine.wakes == []


@pytest.mark.parametrize("jump", [3600, -24 * 3600])
def test_the_wall_clock_has_no_say(jump):
    machine = Machine()
    machine.live(10)
    machine.clock.epoch += jump
    machine.live(1)
    assert not machine.grace.calm()


def test_the_pair_of_this_machine_agrees_while_it_is_awake():
    assert machine_asleep() == pytest.approx(machine_asleep(), abs=0.05)
