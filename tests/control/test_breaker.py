"""The series of requirement C3, on a clock of the test's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.control.breaker import Breaker, State, failures_to_open
from mlxd.policy.load import Override, load
from mlxd.policy.schema.supervision import Worker as WorkerPolicy
from tests.support.examples import examples


def policy(**values: str) -> WorkerPolicy:
    """`backoff__base="1s"`; the rest is the default."""
    given = [
        Override(f"supervision.worker.{key.replace('__', '.')}", text, "a test", yaml=True)
        for key, text in values.items()
    ]
    return load(None, given).supervision.worker


DEFAULT = policy()


class Series:
    """A worker that is started as soon as it may be."""

    def __init__(self, policy: WorkerPolicy = DEFAULT, chance: float = 0.0) -> None:
        self.policy = policy
        self.now = 1000.0
        self.breaker = Breaker(lambda: chance)

    def state(self) -> State:
        return self.breaker.state(self.now, self.policy)

    @property
    def failures(self) -> int:
        return self.breaker.failures(self.now, self.policy)

    @property
    def wait(self) -> float:
        return self.breaker.next_start(self.now, self.policy) - self.now

    def fail(self, times: int = 1) -> None:
        """The worker runs and fails; between two failures it waits as long as it must."""
        for n in range(times):
            if n:
                self.restart()
            self.breaker.failed(self.now, self.policy)

    def restart(self) -> None:
        self.now += max(0.0, self.wait)
        if self.state() is State.OPEN:
            self.breaker.probe()
        self.breaker.started(self.now)

    def opened(self) -> Series:
        self.fail(failures_to_open(self.policy))
        assert self.state() is State.OPEN
        return self


def test_five_restarts_wait_longer_each_time_and_the_sixth_failure_opens_it():
    series = Series()
    assert series.state() is State.IDLE
    waits, states = [], []
    for n in range(6):
        if n:
            series.restart()
        series.breaker.failed(series.now, series.policy)
        waits.append(series.wait)
        states.append(series.state())
    assert waits == [2, 4, 8, 16, 32, 60]
    assert states == [State.BACKING_OFF] * 5 + [State.OPEN]
    assert series.failures == 6


def test_a_back_off_ends_with_its_time():
    series = Series()
    series.fail()
    series.now += 1.999
    assert series.state() is State.BACKING_OFF
    series.now += 0.001
    assert series.state() is State.IDLE


def test_a_probe_every_minute_and_the_fifth_that_fails_is_the_last():
    series = Series().opened()
    for probe in range(1, 6):
        assert (series.state(), series.wait) == (State.OPEN, 60)
        series.restart()
        assert series.state() is State.PROBING
        series.now += 3
        series.fail()
        assert (series.state() is State.QUARANTINED) == (probe == 5)
    assert series.wait == 3600


def test_probes_are_outside_the_budget():
    series = Series(policy(budget="[{max: 5, per: 1h}]")).opened()
    series.restart()
    series.breaker.delivered()
    assert len(series.breaker._restarts) == 5


def test_a_first_token_closes_it_and_the_next_failure_opens_it_again():
    series = Series().opened()
    series.restart()
    series.breaker.delivered()
    assert series.state() is State.IDLE
    assert series.failures == 6
    series.now += 10
    series.fail()
    assert (series.state(), series.failures) == (State.OPEN, 7)


def test_a_first_token_begins_the_count_of_probes_anew():
    series = Series().opened()
    for _ in range(4):
        series.restart()
        series.fail()
    series.restart()
    series.breaker.delivered()
    series.fail()
    for _ in range(4):
        series.restart()
        series.fail()
    assert series.state() is State.OPEN


@pytest.mark.parametrize(("quiet", "count"), [(299.9, 6), (300.0, 1)])
def test_the_count_begins_anew_only_after_a_time_without_a_failure(quiet, count):
    series = Series()
    series.fail(5)
    series.now += quiet
    series.fail()
    assert series.failures == count
    assert (series.state() is State.OPEN) == (count == 6)
    if count == 1:
        assert series.wait == 2


def test_time_that_loads_take_is_none_without_a_failure():
    series = Series()
    series.fail(5)
    series.breaker.load_begins(series.now)
    series.now += 900
    assert series.failures == 5
    series.breaker.load_ended(series.now)
    series.now += 299
    assert series.failures == 5
    series.fail()
    series.now += 299
    assert series.failures == 6
    series.now += 1
    assert series.failures == 0


def test_of_a_load_that_began_before_the_failure_only_the_rest_is_taken_off():
    series = Series()
    series.breaker.load_begins(series.now)
    series.now += 900
    series.fail()
    series.now += 10
    series.breaker.load_ended(series.now)
    series.now += 299
    assert series.failures == 1
    series.now += 1
    assert series.failures == 0


def test_a_quarantine_ends_by_itself_and_what_follows_is_a_start_like_any():
    series = Series().opened()
    for _ in range(5):
        series.restart()
        series.fail()
    series.now += 3599
    assert series.state() is State.QUARANTINED
    series.now += 1
    assert (series.state(), series.failures) == (State.IDLE, 0)
    series.restart()
    series.fail()
    assert (series.state(), series.wait) == (State.BACKING_OFF, 2)


def test_a_short_quarantine_does_not_reset_the_count():
    series = Series(policy(breaker__open="10s", breaker__quarantine="10s")).opened()
    for _ in range(5):
        series.restart()
        series.fail()
    series.now += 60
    assert (series.state(), series.failures) == (State.IDLE, 11)
    series.restart()
    series.fail()
    assert series.state() is State.OPEN


def test_a_probe_that_could_not_be_made_is_none():
    series = Series().opened()
    for _ in range(9):
        series.restart()
        series.breaker.put_off(series.now)
        assert (series.state(), series.wait) == (State.OPEN, 60)
    series.now += 20
    series.breaker.put_off(series.now)
    assert series.wait == 40, "there was none to put off"


def test_a_probe_of_what_is_not_open_is_a_start_like_any():
    series = Series()
    for _ in range(5):
        series.breaker.probe()
        series.fail()
        assert series.state() is State.BACKING_OFF
    series.fail()
    assert series.state() is State.OPEN


@pytest.mark.parametrize(
    ("budget", "failures"),
    [("[{max: 3, per: 300s}]", 4), ("[{max: 5, per: 300s}, {max: 2, per: 1h}]", 3)],
)
def test_auto_is_the_first_failure_that_no_budget_has_a_restart_for(budget, failures):
    series = Series(policy(budget=budget))
    series.fail(failures - 1)
    assert series.state() is State.BACKING_OFF
    series.restart()
    series.fail()
    assert series.state() is State.OPEN


def test_every_window_of_the_budget_holds():
    """Failures so far apart that none is in a row with another use up the longer window."""
    series = Series(policy(budget="[{max: 5, per: 300s}, {max: 8, per: 1d}]"))
    for _ in range(8):
        series.fail()
        series.restart()
        series.now += 400
        assert series.state() is State.IDLE
    series.fail()
    assert (series.failures, series.state()) == (1, State.OPEN)


def test_a_window_forgets_what_is_older_than_it():
    series = Series(policy(budget="[{max: 2, per: 1000s}]", breaker__failures="99"))
    series.fail(3)
    assert series.state() is State.OPEN
    series.restart()
    series.breaker.delivered()
    series.now += 1001
    series.fail()
    assert series.state() is State.BACKING_OFF


def test_a_number_of_failures_may_open_it_before_the_budget_does():
    series = Series(policy(breaker__failures="2"))
    series.fail(2)
    assert series.state() is State.OPEN


def test_a_wait_has_an_end_however_many_failures():
    series = Series(policy(budget="[{max: 1000, per: 1s}]", backoff__factor="10"))
    series.fail(400)
    assert series.wait == 60


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 2.0), (0.5, 1.8), (1.0, 1.6)])
def test_jitter_leaves_a_part_of_each_wait_to_chance(chance, wait):
    series = Series(policy(backoff__jitter="20%"), chance)
    series.fail()
    assert math.isclose(series.wait, wait)


def test_an_edit_counts_at_once_for_what_has_happened_before_it():
    series = Series()
    series.fail(4)
    assert series.wait == 16
    series.policy = policy(backoff__base="1s")
    assert series.wait == 8
    series.policy = policy(budget="[{max: 2, per: 300s}]")
    series.restart()
    series.fail()
    assert (series.state(), series.wait) == (State.OPEN, 60)
    series.policy = policy(breaker__open="5s", breaker__probes="1")
    assert series.wait == 5
    series.restart()
    series.fail()
    assert (series.state(), series.wait) == (State.QUARANTINED, 3600)
    series.policy = policy(breaker__quarantine="1m")
    series.now += 60
    assert series.state() is State.IDLE


POLICIES = [
    DEFAULT,
    policy(budget="[{max: 3, per: 60s}, {max: 5, per: 1h}]", backoff__jitter="50%"),
    policy(breaker__failures="2", breaker__open="7s", breaker__quarantine="30s"),
    policy(backoff__base="1s", backoff__max="3s", backoff__reset_after="20s"),
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "fail", "token", "wait", "put off"]), st.floats(0.0, 400.0)
    ),
    max_size=120,
)


@settings(max_examples=examples(100, 300), deadline=None)
@given(STEPS, st.sampled_from(POLICIES), st.floats(0.0, 1.0))
def test_whatever_happens_no_start_comes_too_soon_or_too_often(
    steps: list[tuple[str, float]], policy: WorkerPolicy, chance: float
) -> None:
    """Only starts that the breaker allows are made; then the rules hold of what was made."""
    series, made = Series(policy, chance), Made()
    for what, seconds in steps:
        if what == "wait":
            series.now += seconds
        elif what == "start" and not made.up and series.wait <= 0:
            made.start(series)
        elif what == "fail" and made.up:
            made.fail(series)
        elif what == "token" and made.up:
            series.breaker.delivered()
            made.probing = False
        elif what == "put off" and made.probing:
            series.breaker.put_off(series.now)
            made.up = made.probing = False
    for window in policy.budget:
        per = float(window.per)
        assert all(
            sum(at - per < other <= at for other in made.restarts) <= window.max
            for at in made.restarts
        )


class Made:
    """What a worker did, and what follows from it by the words of the requirement."""

    def __init__(self) -> None:
        self.up = self.probing = False
        self.restarts: list[float] = []
        self.in_a_row = 0
        self.failed_at = -math.inf

    def start(self, series: Series) -> None:
        self.up, self.probing = True, series.state() is State.OPEN
        if self.probing:
            series.breaker.probe()
        if series.breaker.started(series.now) and not self.probing:
            self.restarts.append(series.now)

    def fail(self, series: Series) -> None:
        quiet = series.now - self.failed_at >= float(series.policy.backoff.reset_after)
        self.in_a_row = 1 if quiet else self.in_a_row + 1
        self.failed_at, self.up, self.probing = series.now, False, False
        series.fail()
        assert series.failures == self.in_a_row
        enough: Any = failures_to_open(series.policy)
        if self.in_a_row >= enough:
            assert series.state() in (State.OPEN, State.QUARANTINED)
        if series.state() is State.BACKING_OFF:
            backoff = series.policy.backoff
            longest = float(backoff.base) * backoff.factor ** (self.in_a_row - 1)
            longest = min(longest, float(backoff.max))
            assert longest * (1 - float(backoff.jitter)) - 1e-6 <= series.wait <= longest + 1e-6
