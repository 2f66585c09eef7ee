"""Who runs, who waits and who is refused, on a clock that stands still between decisions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from mlxd.control.applicant import Applicant
from mlxd.control.place import Place
from mlxd.control.scheduler import Scheduler
from mlxd.control.shedding import Strain
from mlxd.control.watermarks import Level
from mlxd.core.caller import Priority
from mlxd.core.errors import MlxdError, QueueFull, QueueTimeout, RateLimited
from mlxd.policy.policy_set import PolicySet
from tests.support.long import short
from tests.support.queue_model import (
    CLASSES,
    Counting,
    Models,
    full,
    of_tenant,
    policies_of,
    scheduler_of,
    served,
    unheard,
    waiting,
)

TENANTS = ("a", "b", "c", "d")
MODELS = ("m", "n", "cold")


# -- random schedules, against counting


RATES = ((), ((3, 20.0),), ((2, 5.0), (9, 60.0)))


def drawn(random: random.Random, rates: tuple[tuple[int, float], ...]) -> PolicySet:
    most = random.randint(1, 5)
    return policies_of(
        max_in_flight=most,
        max_waiting=random.choice((0, 1, 3, 8, 20)),
        max_waiting_tokens=random.choice((30, 2_000_000)),
        affinity=random.randint(0, 3),
        per_model=random.choice(({}, {"m": 1}, {"m": 2, "n": 1})),
        ageing=random.choice((2.0, 20.0)),
        queue=random.choice((5.0, 30.0)),
        rates=rates,
        tenants={
            name: {
                "weight": random.randint(1, 4),
                "max_in_flight": random.choice((None, None, 1, 2)),
                "max_priority": random.choice(("high", "high", "medium")),
            }
            for name in TENANTS[:3]
        },
        classes={
            name: {
                "max_share": random.choice((1.0, 1.0, 0.5)),
                "borrow": random.random() < 0.8,
                "queue": random.choice(("auto", "auto", 2, 0)),
            }
            for name in CLASSES
        },
    )


class Schedule:
    """One random story. What the scheduler decides is compared with what counting says."""

    def __init__(self, seed: int, choices: list[PolicySet]) -> None:
        self.random = random.Random(seed)
        self.choices = choices
        policies = self.random.choice(choices)
        self.models = Models({"cold"})
        self.scheduler = scheduler_of(policies, self.models)
        self.model = Counting(policies, self.models)
        self.now = 0.0
        self.seen: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        acts = (self.ask, self.end, self.give_up, self.edit, self.load)
        for _ in range(steps):
            self.now += self.random.expovariate(1.0)
            self.expire()
            self.random.choices(acts, (60, 25, 5, 3, 7))[0]()
            self.turn()
            self.check()
        while self.model.running or self.model.waiting:
            self.now += 0.5
            self.expire()
            self.end()
            self.turn()
            self.check()
        assert self.scheduler.next_expiry() is None

    def ask(self) -> None:
        applicant = of_tenant(
            self.random.choice(TENANTS),
            self.model.policies,
            self.random.choice(MODELS),
            self.random.choice((None, *CLASSES)),
            self.random.randint(1, 20),
        )
        verdict = self.model.verdict(applicant, self.now)
        try:
            place = self.scheduler.ask(applicant, self.now, 0.0, unheard)
        except MlxdError as error:
            refused = error
        else:
            self.goes_on(place, verdict)
            return
        assert refused.policy is not None
        assert refused.policy.key == verdict
        self.seen["429" if isinstance(refused, RateLimited) else "503"] += 1

    def goes_on(self, place: Place, verdict: str) -> None:
        self.seen[verdict] += 1
        if place.started is None:
            assert verdict == "wait"
            self.model.waits(place, self.now)
        else:
            assert verdict == "run"
            self.model.starts(place, self.now)

    def end(self) -> None:
        if self.model.running:
            place = self.random.choice(self.model.running)
            self.model.ends(place)
            self._leave(place, self.random.choice((None, 0, 1, 40)))

    def give_up(self) -> None:
        if self.model.waiting:
            place = self.random.choice(self.model.waiting)
            self.model.ends(place)
            self._leave(place, None)

    def _leave(self, place: Place, tokens: int | None) -> None:
        for _ in range(2):  # once is enough
            self.scheduler.leave(place, self.now, 0.0, tokens=tokens)

    def edit(self) -> None:
        self.model.policies = self.random.choice(self.choices)
        self.scheduler.apply(self.model.policies)

    def load(self) -> None:
        for place in self.model.running:
            if place.loading:
                self.scheduler.loaded(place)

    def expire(self) -> None:
        at = self.scheduler.next_expiry()
        due = [place for place in self.model.waiting if place.deadline <= self.now]
        assert (at is not None and at <= self.now) == bool(due)
        expired = self.scheduler.expire(self.now)
        assert {place for place, _ in expired} == {*due}
        assert len(expired) == len(due)
        for place, error in expired:
            assert isinstance(error, QueueTimeout)
            self.seen["late"] += 1
            self.model.ends(place)

    def turn(self) -> None:
        for place in self.scheduler.turn(self.now):
            assert place in self.model.waiting
            assert place.passed <= 3
            self.model.starts(place, self.now)
            self.seen["woken"] += 1

    def check(self) -> None:
        scheduler, model = self.scheduler, self.model
        assert scheduler.active == len(model.running)
        assert scheduler.waiting == {klass: len(model.of(klass)) for klass in CLASSES}
        assert scheduler._lines.tokens == pytest.approx(sum(p.cost for p in model.waiting))
        assert not any(map(model.may, model.waiting))
        positions = sorted(map(scheduler.position, model.waiting))
        assert positions == [*range(1, len(positions) + 1)]


def schedules(seeds: range) -> Counter[str]:
    source = random.Random(seeds.start)
    choices = [[drawn(source, rates) for _ in range(40)] for rates in RATES]
    seen: Counter[str] = Counter()
    for seed in seeds:
        schedule = Schedule(seed, source.sample(choices[seed % len(RATES)], 3))
        try:
            schedule.run(30)
        except AssertionError as error:
            error.add_note(f"seed {seed} of {seeds}")
            raise
        seen += schedule.seen
    return seen


def test_every_decision_is_what_counting_says() -> None:
    seen = schedules(range(500))
    assert min(seen[what] for what in ("run", "wait", "woken", "late", "429", "503")) > 150


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_decision_is_what_counting_says_in_ten_thousand_schedules() -> None:
    schedules(range(10_000))


# -- shares


class Saturated:
    """Whoever is told to has always a few waiting; each that runs takes its time."""

    def __init__(self, policies: PolicySet, seed: int = 1) -> None:
        self.scheduler = scheduler_of(policies)
        self.policies = policies
        self.random = random.Random(seed)
        self.now = 0.0
        self.running: list[tuple[float, Place, int]] = []
        self.given: Counter[str] = Counter()
        """Tokens, by tenant."""
        self.admitted: Counter[str] = Counter()
        """Requests, by class."""

    def ask(self, tenant: str, klass: Priority = "medium", *, cost: float, took: int) -> None:
        applicant = of_tenant(tenant, self.policies, "m", klass, cost)
        place = self.scheduler.ask(applicant, self.now, 0.0, unheard)
        self.took[place] = took
        if place.started is not None:
            self._begin(place)

    took: dict[Place, int]

    def run(self, admissions: int, refill: Any) -> None:
        self.took = {}
        while self.admitted.total() < admissions:
            refill(self)
            if not self.running:
                continue
            self.running.sort(key=lambda one: one[0])
            self.now, place, took = self.running.pop(0)
            self.scheduler.leave(place, self.now, 0.0, tokens=took)
            self.given[place.client] += took
            for begun in self.scheduler.turn(self.now):
                self._begin(begun)

    def _begin(self, place: Place) -> None:
        took = self.took.pop(place)
        self.admitted[place.klass] += 1
        length = took * self.random.uniform(0.5, 1.5) * 0.001
        self.running.append((self.now + length, place, took))

    def waiting(self) -> Counter[str]:
        """By tenant."""
        return Counter(place.client for place in self.scheduler.places_waiting())


def shares(counts: Counter[str], weights: dict[str, int]) -> Iterator[tuple[float, float]]:
    for name, weight in weights.items():
        yield counts[name] / counts.total(), weight / sum(weights.values())


@pytest.mark.parametrize("most", [1, 4])
def test_classes_share_admissions_by_their_weights(most: int) -> None:
    weights = {"high": 8, "medium": 3, "low": 1}
    policies = policies_of(max_in_flight=most, max_waiting=100, ageing=1e9)

    def refill(world: Saturated) -> None:
        for klass in CLASSES:
            while world.scheduler.waiting[klass] < 3:
                world.ask(klass[0], klass, cost=1, took=world.random.randint(1, 100))

    world = Saturated(policies)
    world.run(2400, refill)
    for share, wanted in shares(world.admitted, weights):
        assert share == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("seed", short(range(3), 0))
def test_clients_share_tokens_by_their_weights_whatever_was_expected(most: int, seed: int) -> None:
    """One asks for little, one for much, one expects ten times what it takes, one a tenth."""
    weights = {"a": 1, "b": 2, "c": 4, "d": 2}
    kinds = {"a": (10, 10), "b": (200, 200), "c": (500, 50), "d": (5, 50)}
    policies = policies_of(
        max_in_flight=most,
        max_waiting=100,
        tenants={name: {"weight": weight} for name, weight in weights.items()},
    )

    def refill(world: Saturated) -> None:
        waiting = world.waiting()
        for name, (cost, took) in kinds.items():
            for _ in range(waiting[name], 2 + most):
                factor = world.random.uniform(0.2, 1.8)
                world.ask(name, cost=cost * factor, took=max(1, round(took * factor)))

    world = Saturated(policies, seed)
    world.run(4000, refill)
    for share, wanted in shares(world.given, weights):
        assert share == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(("cost", "before"), [(10, 1), (100, 10)])
def test_a_thousand_of_one_client_delay_another_by_no_more_than_its_share(
    cost: int, before: int
) -> None:
    policies = policies_of(max_waiting=2000, max_in_flight=1)
    scheduler, holder = full(policies)
    waiting(scheduler, *(of_tenant("many", policies, cost=10) for _ in range(1000)))
    (first,) = waiting(scheduler, of_tenant("other", policies, cost=cost))
    assert scheduler.position(first) <= before + 1
    assert first in served(scheduler, holder, before + 1)


def test_who_was_idle_has_saved_nothing_up_and_who_was_busy_alone_owes_nothing() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=100)
    scheduler = scheduler_of(policies)
    for _ in range(5):
        alone = scheduler.ask(of_tenant("busy", policies, cost=1000), 0.0, 0.0, unheard)
        scheduler.leave(alone, 0.0, 0.0, tokens=1000)
    holder = scheduler.ask(of_tenant("x", policies), 0.0, 0.0, unheard)
    names = ("busy", "new", "busy", "new", "busy", "new")
    waiting(scheduler, *(of_tenant(name, policies, cost=10) for name in names))
    assert [place.client for place in served(scheduler, holder, 6)] == [*names]


def test_who_comes_back_while_others_wait_has_not_got_away_with_what_it_took() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=100)
    scheduler, holder = full(policies)
    waiting(scheduler, *(of_tenant("patient", policies, cost=10) for _ in range(20)))
    for _ in range(2):
        waiting(scheduler, of_tenant("again", policies, cost=50))
        patient = 0
        (holder,) = served(scheduler, holder, 1)
        while holder.client == "patient":
            patient += 1
            (holder,) = served(scheduler, holder, 1)
        assert patient in (4, 5)  # for the one of the other


def test_what_was_expected_is_put_right_when_it_has_ended() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=100)
    scheduler, holder = full(policies)
    waiting(scheduler, *(of_tenant("frugal", policies, cost=100) for _ in range(3)))
    waiting(scheduler, *(of_tenant("other", policies, cost=110) for _ in range(3)))
    order = []
    for _ in range(4):
        scheduler.leave(holder, 0.0, 0.0, tokens=1)
        (holder,) = scheduler.turn(0.0)
        order.append(holder.client)
    assert order == ["frugal", "frugal", "frugal", "other"]


def test_a_limit_of_its_own_holds_up_nobody_else_and_saves_up_nothing() -> None:
    tenants = {"held": {"max_in_flight": 1}}
    policies = policies_of(max_in_flight=2, max_waiting=200, tenants=tenants)
    scheduler = scheduler_of(policies)
    places = [
        scheduler.ask(of_tenant("held", policies, cost=10), 0.0, 0.0, unheard) for _ in range(31)
    ]
    slot = scheduler.ask(of_tenant("other", policies, cost=10), 0.0, 0.0, unheard)
    assert [place.started is None for place in places] == [False] + [True] * 30
    waiting(scheduler, *(of_tenant("other", policies, cost=10) for _ in range(40 - 21)))
    (*_, slot) = served(scheduler, slot, 15)
    assert slot.client == "other"
    scheduler.apply(policies_of(max_in_flight=2, max_waiting=200))
    order = [place.client for place in served(scheduler, slot, 4)]
    assert order.count("other") >= 1


# -- classes


def test_a_class_that_waited_for_long_goes_first_and_is_charged_for_it() -> None:
    policies = policies_of(
        max_in_flight=1, max_waiting=500, ageing=20.0, queue=1e9, classes={"high": {"weight": 1000}}
    )
    scheduler, holder = full(policies)
    highs = [of_tenant("a", policies, priority="high") for _ in range(40)]
    lows = [of_tenant("b", policies, priority="low") for _ in range(3)]
    waiting(scheduler, *lows, *highs)
    for now in (1.0, 10.0, 20.0):
        assert served(scheduler, holder, 1, now)[0].klass == "high"
        (holder,) = (place for place in scheduler.running)
    (low,) = served(scheduler, holder, 1, 20.1)
    assert low.klass == "low"
    order = [place.klass for place in served(scheduler, low, 3, 20.2)]
    assert order == ["high"] * 3


def test_high_goes_before_a_hundred_low_ones_that_wait() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=200)
    scheduler, holder = full(policies)
    waiting(scheduler, *(of_tenant("a", policies, priority="low") for _ in range(100)))
    (high,) = waiting(scheduler, of_tenant("b", policies, priority="high"))
    assert scheduler.position(high) == 1
    assert served(scheduler, holder, 1) == [high]


@pytest.mark.parametrize(
    ("own", "most"), [({"max_share": 0.5}, 2), ({"borrow": False}, 1), ({"max_share": 0.01}, 1)]
)
def test_a_class_has_no_more_than_its_share_of_all_slots(own: dict[str, Any], most: int) -> None:
    policies = policies_of(max_in_flight=4, max_waiting=9, classes={"low": own})
    scheduler = scheduler_of(policies)
    low = of_tenant("a", policies, priority="low")
    places = [scheduler.ask(low, 0.0, 0.0, unheard) for _ in range(4)]
    assert sum(place.started is not None for place in places) == most
    assert places[3].waits_for == f"clients.priorities.low.{next(iter(own))}"
    assert scheduler.ask(of_tenant("b", policies), 0.0, 0.0, unheard).started is not None


# -- affinity


@pytest.mark.parametrize("affinity", [0, 1, 3])
def test_who_must_wait_for_a_load_is_passed_so_often_and_no_more(affinity: int) -> None:
    policies = policies_of(max_in_flight=1, max_waiting=50, affinity=affinity)
    scheduler, holder = full(policies, Models({"cold"}))
    (cold,) = waiting(scheduler, of_tenant("a", policies, "cold"))
    waiting(scheduler, *(of_tenant("a", policies, "m") for _ in range(5)))
    order = served(scheduler, holder, affinity + 1)
    assert order.index(cold) == affinity
    assert cold.passed == affinity


def test_nobody_of_another_class_passes_for_the_sake_of_its_model() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=50, affinity=9)
    scheduler, holder = full(policies, Models({"cold"}))
    (cold,) = waiting(scheduler, of_tenant("a", policies, "cold", "high"))
    waiting(scheduler, of_tenant("b", policies, "m", "medium"))
    assert served(scheduler, holder, 1) == [cold]


# -- limits that change


def test_raised_limits_let_in_who_waits_and_lowered_ones_stop_nobody() -> None:
    def sized(most: int, waiting: int) -> PolicySet:
        return policies_of(max_in_flight=most, max_waiting=waiting)

    policies = sized(1, 10)
    scheduler, holder = full(policies)
    places = waiting(scheduler, *(of_tenant("a", policies) for _ in range(6)))
    scheduler.apply(sized(4, 0))
    assert scheduler.turn(0.0) == places[:3]
    scheduler.apply(sized(2, 1))
    assert scheduler.turn(0.0) == []
    with pytest.raises(QueueFull):
        scheduler.ask(of_tenant("b", policies), 0.0, 0.0, unheard)
    for place in (holder, *places[:2]):
        scheduler.leave(place, 1.0, 0.0)
    assert scheduler.turn(1.0) == places[3:4]
    scheduler.apply(sized(3, 1))
    assert scheduler.turn(1.0) == places[4:5]


def test_a_concurrency_that_is_no_longer_enforced_lets_in_all() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=10)
    scheduler, _ = full(policies)
    places = waiting(scheduler, *(of_tenant("a", policies) for _ in range(6)))
    scheduler.apply(policies_of(max_in_flight=1, max_waiting=10, mode="off"))
    assert scheduler.turn(0.0) == places
    assert scheduler.active == 7


def test_on_trial_as_many_over_a_limit_as_may_wait_are_not_told_of() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=2, mode="dry_run")
    scheduler, told = scheduler_of(policies), list[str]()
    for _ in range(4):
        scheduler.ask(of_tenant("a", policies), 0.0, 0.0, told.append)
    assert told == ["concurrency"]


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"classes": {"low": {"queue": 2}}}, 1),
        ({"classes": {"medium": {"queue": 0}}}, 0),
        ({"max_waiting_tokens": 250}, 1),
        ({}, 0),
    ],
)
def test_on_trial_whoever_would_wait_is_judged_by_each_bound_of_the_queue(
    bounds: dict[str, Any], told: int
) -> None:
    policies = policies_of(max_in_flight=1, max_waiting=9, mode="dry_run", **bounds)
    scheduler, heard = scheduler_of(policies), list[str]()
    for _ in range(4):
        low = of_tenant("a", policies, priority="low", cost=100)
        scheduler.ask(low, 0.0, 0.0, heard.append)
    assert heard == ["concurrency"] * told


@pytest.mark.parametrize("mode", ["off", "dry_run"])
def test_a_tenants_own_limit_holds_whatever_the_mode_of_the_servers_is(mode: str) -> None:
    rest: dict[str, Any] = {"max_in_flight": 1, "tenants": {"a": {"max_in_flight": 1}}}
    policies = policies_of(max_waiting=9, mode=mode, **rest)
    scheduler = scheduler_of(policies)
    first = scheduler.ask(of_tenant("a", policies), 0.0, 0.0, unheard)
    places = waiting(scheduler, *(of_tenant("a", policies) for _ in range(2)))
    for _ in range(3):
        assert scheduler.ask(of_tenant("b", policies), 0.0, 0.0, lambda rule: None).started == 0.0
    assert scheduler.turn(0.0) == []
    assert served(scheduler, first, 2) == places
    scheduler.apply(policies_of(max_waiting=0, mode=mode, **rest))
    assert refused(scheduler, of_tenant("a", policies)).code == "tenant_busy"


def test_nothing_is_kept_of_models_that_have_been_loaded() -> None:
    models = Models({str(number) for number in range(100)})
    policies = policies_of(max_in_flight=5)
    scheduler = scheduler_of(policies, models)
    for model in models.cold:
        place = scheduler.ask(of_tenant(model, policies, model), 0.0, 0.0, unheard)
        scheduler.loaded(place)
        scheduler.leave(place, 1.0, 0.0)
    slots = scheduler._slots
    assert not any((slots._loading, slots.by_model, slots.by_client))


# -- what is refused, and what a wait is expected to last


def refused(scheduler: Scheduler, applicant: Applicant, now: float = 0.0) -> MlxdError:
    with pytest.raises(MlxdError) as caught:
        scheduler.ask(applicant, now, 0.0, unheard)
    return caught.value


@pytest.mark.parametrize(
    ("bounds", "key"),
    [
        ({"max_waiting": 1}, "limits.concurrency.max_waiting"),
        ({"max_waiting_tokens": 100}, "limits.concurrency.max_waiting_tokens"),
        ({"classes": {"low": {"queue": 1}}}, "clients.priorities.low.queue"),
        ({"max_waiting": 0}, "limits.concurrency.max_in_flight"),
        ({"classes": {"low": {"queue": 0}}}, "clients.priorities.low.queue"),
    ],
)
def test_a_full_queue_says_which_bound_it_is_and_what_would_pass(
    bounds: dict[str, Any], key: str
) -> None:
    policies = policies_of(**{"max_in_flight": 1, "max_waiting": 3, **bounds})
    scheduler, _ = full(policies)
    low = of_tenant("a", policies, cost=1000, priority="low")
    if policies.limits.concurrency.max_waiting and policies.clients.priorities.low.queue != 0:
        waiting(scheduler, low)  # however large it is: it is the only one
    error = refused(scheduler, low)
    assert isinstance(error, QueueFull) == (key != "limits.concurrency.max_in_flight")
    assert error.policy is not None
    assert error.policy.key == key
    assert "(server busy, please try again)" in error.message
    assert error.numbers["running"] == 1
    assert error.would_pass
    assert error.retry_after == 1.0 or isinstance(error, QueueFull)


def test_what_is_said_of_a_full_queue_is_of_what_fills_it() -> None:
    policies = policies_of(
        max_in_flight=1, max_waiting=9, max_waiting_tokens=100,
        classes={"low": {"queue": 1}, "medium": {"queue": 0}},
    )  # fmt: skip
    scheduler, _ = full(policies)
    waiting(scheduler, of_tenant("a", policies, priority="low", cost=80))
    error = refused(scheduler, of_tenant("a", policies, priority="high", cost=40))
    assert "80 tokens are expected of those that wait; with 40 of this request" in error.message
    error = refused(scheduler, of_tenant("a", policies, priority="low"))
    assert "1 request of class low waits, as many as may" in error.message
    error = refused(scheduler, of_tenant("a", policies, priority="medium"))
    assert "no request of class medium may wait" in error.message
    assert "slot is free" in error.would_pass


def test_a_class_may_have_as_many_waiting_as_may_wait_unless_it_is_said_otherwise() -> None:
    scheduler, _ = full(policies_of(max_in_flight=1, max_waiting=0))
    raised = policies_of(max_in_flight=1, max_waiting=200)
    scheduler.apply(raised)
    waiting(scheduler, *(of_tenant("a", raised) for _ in range(200)))
    error = refused(scheduler, of_tenant("b", raised, priority="low"))
    assert error.policy is not None
    assert error.policy.key == "limits.concurrency.max_waiting"


def test_a_tenants_own_limit_is_its_own_fault_and_counts_nothing() -> None:
    policies = policies_of(tenants={"a": {"max_in_flight": 1}}, rates=((3, 60.0),))
    scheduler = scheduler_of(policies)
    scheduler.ask(of_tenant("a", policies), 0.0, 0.0, unheard)
    for _ in range(5):
        error = refused(scheduler, of_tenant("a", policies))
        assert error.code == "tenant_busy"
        assert "busy" in error.message
        assert error.policy is not None
        assert error.policy.key == "clients.tenants.a.max_in_flight"
    scheduler.ask(of_tenant("b", policies), 0.0, 0.0, unheard)


def test_who_is_at_its_own_limit_is_told_when_one_of_its_own_may_end() -> None:
    policies = policies_of(max_in_flight=9, tenants={"a": {"max_in_flight": 2}})
    scheduler = scheduler_of(policies)
    for model, held in (("quick", 2.0), ("slow", 24.0)):
        place = scheduler.ask(of_tenant("a", policies, model), 0.0, 0.0, unheard)
        scheduler.leave(place, held, 0.0)
    for _ in range(4):
        scheduler.ask(of_tenant("b", policies, "quick"), 30.0, 0.0, unheard)
    for _ in range(2):
        scheduler.ask(of_tenant("a", policies, "slow"), 30.0, 0.0, unheard)
    error = refused(scheduler, of_tenant("a", policies), 30.0)
    assert (error.code, error.retry_after) == ("tenant_busy", 12.0)


@pytest.mark.parametrize(("window", "told"), [(600.0, "tokens_exhausted"), (60.0, "rate_limited")])
def test_of_a_quota_and_a_rate_the_one_that_refuses_longer_is_told(
    window: float, told: str
) -> None:
    policies = policies_of(
        max_in_flight=1, rates=((1, 300.0),), tenants={"a": {"tokens": 5, "window": window}}
    )
    scheduler, one = scheduler_of(policies), of_tenant("a", policies)
    place = scheduler.ask(one, 0.0, 0.0, unheard)
    scheduler.leave(place, 0.0, 0.0, tokens=9)
    with pytest.raises(RateLimited) as raised:
        scheduler.ask(one, 10.0, 10.0, unheard)
    assert raised.value.code == told
    assert raised.value.retry_after == max(window, 300.0) - 10.0


def test_what_is_shed_counts_and_takes_no_slot() -> None:
    policies = policies_of(rates=((2, 60.0),))
    scheduler = scheduler_of(policies)
    scheduler.shedding.strain = Strain(Level.CRITICAL, 0.96, "memory is full", 10.0)
    low = of_tenant("a", policies, priority="low")
    assert [refused(scheduler, low).code for _ in range(2)] == ["shed", "shed"]
    assert isinstance(refused(scheduler, low), RateLimited)
    assert scheduler.ask(of_tenant("b", policies), 0.0, 0.0, unheard).started is not None


def test_a_wait_is_expected_to_last_as_slots_were_held() -> None:
    policies = policies_of(max_in_flight=2, max_waiting=50)
    scheduler = scheduler_of(policies)
    assert scheduler.expected_wait("medium") == 0
    places = []
    for now in range(0, 400, 10):
        place = scheduler.ask(of_tenant("a", policies, "m"), float(now), 0.0, unheard)
        scheduler.leave(place, now + 10.0, 0.0)
    for _ in range(2):
        scheduler.ask(of_tenant("a", policies, "m"), 400.0, 0.0, unheard)
    places = waiting(scheduler, *(of_tenant("a", policies) for _ in range(4)), now=400.0)
    waits = [scheduler.expected_wait(place) for place in places]
    assert waits == pytest.approx([5, 10, 15, 20], rel=0.02)
    assert scheduler.expected_wait("medium") == pytest.approx(25, rel=0.02)
    assert scheduler.expected_wait("high") == pytest.approx(5, rel=0.02)
    assert scheduler.retry_after("medium") == pytest.approx(25, rel=0.02)


def held(scheduler: Scheduler, policies: PolicySet, **seconds: float) -> None:
    """Each of these models has held a slot for so long."""
    for model, long in seconds.items():
        place = scheduler.ask(of_tenant("z", policies, model), 0.0, 0.0, unheard)
        scheduler.leave(place, long, 0.0)


@pytest.mark.parametrize("mode", ["off", "dry_run"])
def test_no_wait_is_expected_where_nobody_has_to(mode: str) -> None:
    policies = policies_of(max_in_flight=1, max_waiting=5, mode=mode)
    scheduler, _ = full(policies)
    assert scheduler.expected_wait("medium") == 0
    assert scheduler.ask(of_tenant("a", policies), 0.0, 0.0, unheard).started is not None


def test_no_wait_is_expected_behind_those_that_a_limit_of_their_own_holds_back() -> None:
    policies = policies_of(max_in_flight=5, max_waiting=5, tenants={"x": {"max_in_flight": 1}})
    scheduler = scheduler_of(policies)
    scheduler.ask(of_tenant("x", policies), 0.0, 0.0, unheard)
    waiting(scheduler, of_tenant("x", policies), of_tenant("x", policies))
    assert (scheduler.free_slots, scheduler.expected_wait("medium")) == (4, 0)
    assert scheduler.ask(of_tenant("a", policies), 0.0, 0.0, unheard).started is not None


@pytest.mark.parametrize(
    ("bounds", "asks", "told"),
    [
        ({}, {"model": "fast"}, 4.0),
        ({"per_model": {"slow": 1}}, {"model": "slow"}, 20.0),
        ({"classes": {"low": {"max_share": 0.2}}}, {"model": "fast", "priority": "low"}, 20.0),
        ({"tenants": {"a": {"max_in_flight": 1}}}, {"model": "fast"}, 20.0),
    ],
)
def test_who_is_refused_is_told_when_one_of_those_ends_that_its_limit_counts(
    bounds: dict[str, Any], asks: dict[str, Any], told: float
) -> None:
    policies = policies_of(max_in_flight=5 if bounds else 3, **bounds)
    scheduler = scheduler_of(policies)
    held(scheduler, policies, slow=20.0, fast=8.0)
    scheduler.ask(of_tenant("a", policies, "slow", "low"), 30.0, 0.0, unheard)
    for _ in range(2):
        scheduler.ask(of_tenant("b", policies, "fast"), 30.0, 0.0, unheard)
    retry_after = refused(scheduler, of_tenant("a", policies, **asks)).retry_after
    assert retry_after == pytest.approx(told)


@pytest.mark.parametrize(("said", "told"), [("auto", 1.0), (7.0, 7.0)])
def test_retry_after_may_be_said_by_policy(said: Any, told: float) -> None:
    policies = policies_of(max_in_flight=1, retry_after=said)
    scheduler, _ = full(policies)
    assert refused(scheduler, of_tenant("a", policies)).retry_after == told


def test_what_is_told_of_a_wait_that_took_too_long() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=5, queue=4.0)
    scheduler, _ = full(policies)
    (first, second) = waiting(scheduler, of_tenant("a", policies), of_tenant("b", policies))
    assert scheduler.next_expiry() == 4.0
    assert scheduler.expire(3.9) == []
    expired = scheduler.expire(4.0)
    assert [place for place, _ in expired] == [first, second]
    error = expired[0][1]
    assert error.policy is not None
    assert error.policy.key == "timeouts.queue"
    assert error.retry_after is not None
    assert "busy" in error.message
    assert scheduler.next_expiry() is None


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({}, "No slot was free within 4 s"),
        (
            {"tenants": {"x": {"max_in_flight": 1}}},
            "None of the slots of this client (1 by clients.tenants.x.max_in_flight) was free",
        ),
        (
            {"per_model": {"m": 1}},
            "None of the slots of model 'm' (1 by limits.concurrency.per_model.m) was free",
        ),
        (
            {"classes": {"medium": {"max_share": 0.2}}},
            "None of the slots of class medium (1 by clients.priorities.medium.max_share) was free",
        ),
    ],
)
def test_a_wait_that_took_too_long_says_what_it_was_for(bounds: dict[str, Any], said: str) -> None:
    most = 5 if bounds else 1
    policies = policies_of(max_in_flight=most, max_waiting=5, queue=4.0, **bounds)
    scheduler, _ = full(policies)
    waiting(scheduler, of_tenant("x", policies))
    ((_, error),) = scheduler.expire(4.0)
    assert said in error.message
    whose = said.partition(" slots of ")[2].partition(" (")[0]
    assert error.would_pass.endswith(f"fewer requests of {whose} run or wait" if whose else "wait")


def test_the_order_is_made_once_for_all_that_waited_too_long() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=9, queue=4.0)
    scheduler, _ = full(policies)
    places = waiting(scheduler, *(of_tenant("a", policies) for _ in range(5)))
    expired = scheduler.expire(4.0)
    assert [place for place, _ in expired] == places
    assert [error.numbers["position"] for _, error in expired] == [1, 2, 3, 4, 5]
    assert scheduler.places_waiting() == []


# -- what is expected of models that nobody has used yet


def test_a_wait_is_expected_by_what_was_benched_until_a_request_has_ended() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=5)
    scheduler = scheduler_of(policies)
    asked: list[int] = []

    def expects(place: Place, streams: int) -> float:
        asked.append(streams)
        return 40.0

    unbenched, first = full(policies)
    assert unbenched.expected_wait("medium") == 1.0
    unbenched.leave(first, 0.0, 0.0)
    scheduler.expects = expects
    first = scheduler.ask(of_tenant("x", policies), 0.0, 0.0, unheard)
    (second,) = waiting(scheduler, of_tenant("y", policies))
    assert scheduler.expected_wait(second) == 40.0
    assert asked == [1]
    scheduler.leave(first, 3.0, 0.0)
    scheduler.turn(3.0)
    assert asked == [1]
    (third,) = waiting(scheduler, of_tenant("z", policies), now=3.0)
    assert scheduler.expected_wait(third) == 3.0
    scheduler.forget("m")
    assert scheduler.expected_wait(third) == 40.0
