"""Whose turn it is, where a few requests tell."""

from __future__ import annotations

from itertools import count

import pytest

from mlxd.control.fair import FairQueue
from mlxd.control.place import Place
from mlxd.control.scheduler import Scheduler
from mlxd.policy.policy_set import PolicySet
from tests.support.queue_model import (
    full,
    of_tenant,
    policies_of,
    scheduler_of,
    served,
    unheard,
    waiting,
)


class Queue:
    """A fair queue, and places by their clients."""

    def __init__(self) -> None:
        self.fair = FairQueue()
        self.numbers = count()
        self.policies = policies_of()

    def place(self, client: str, cost: float) -> Place:
        applicant = of_tenant(client, self.policies, cost=cost)
        return Place(applicant, "medium", client, cost, 0.0, 30.0, next(self.numbers))

    def add(self, client: str, *costs: float) -> list[Place]:
        places = [self.place(client, cost) for cost in costs]
        for place in places:
            self.fair.add(place, 1)
        return places

    def run(self, place: Place) -> Place:
        self.fair.start(place, 1)
        return place

    def serve(self) -> str:
        """The next, from its start to its end."""
        place = self.run(next(iter(self.fair)))
        self.fair.end(place, None)
        return place.client

    @property
    def order(self) -> list[str]:
        return [place.client for place in self.fair]


def test_who_has_one_running_for_long_saves_nothing_up_meanwhile() -> None:
    queue = Queue()
    long = queue.run(queue.place("a", 1))
    queue.add("b", *[10] * 20)
    queue.add("c", *[10] * 20)
    for _ in range(20):
        queue.serve()
    queue.add("a", *[10] * 5)
    assert queue.order[:6].count("a") <= 2
    queue.fair.end(long, None)
    assert queue.order[:6].count("a") <= 2


def test_a_large_request_is_not_passed_for_ever_by_small_ones_of_new_clients() -> None:
    queue = Queue()
    queue.add("large", 200)
    for number in range(200):
        queue.add(f"new {number}", 10)
        if queue.serve() == "large":
            return
    raise AssertionError("it is passed for ever")


def test_what_left_the_queue_costs_its_client_nothing() -> None:
    queue = Queue()
    first, _ = queue.add("a", 100, 10)
    queue.add("b", 50)
    assert queue.order == ["b", "a", "a"]
    queue.fair.remove(first)
    assert queue.order == ["a", "b"]


def test_what_somebody_took_while_nobody_waited_is_forgotten() -> None:
    queue = Queue()
    a, b = queue.run(queue.place("a", 1000)), queue.run(queue.place("b", 10))
    queue.fair.end(a, None)
    queue.add("a", 10)
    queue.add("c", 10)
    assert queue.order == ["a", "c"]
    queue.fair.end(b, None)
    assert len(queue.fair._clients) == 2


def test_what_somebody_took_while_others_waited_is_not() -> None:
    queue = Queue()
    a = queue.run(queue.place("a", 1000))
    queue.add("b", *[10] * 10)
    queue.fair.end(a, None)
    queue.add("a", 10)
    assert queue.order[-1] == "a"


def test_an_own_one_that_went_before_counts_against_those_behind() -> None:
    queue = Queue()
    _, small = queue.add("a", 30, 20)
    queue.add("b", 40)
    assert queue.order == ["a", "b", "a"]
    queue.run(small)
    assert queue.order == ["b", "a"]


def test_a_weight_that_was_edited_while_its_client_only_ran_counts() -> None:
    one, nine = (
        policies_of(max_in_flight=1, max_waiting=99, tenants={"a": {"weight": weight}, "b": {}})
        for weight in (1, 9)
    )
    scheduler = scheduler_of(one)
    holder = scheduler.ask(of_tenant("a", one, cost=100), 0.0, 0.0, unheard)
    scheduler.apply(nine)
    for _ in range(20):
        waiting(scheduler, *(of_tenant(name, nine, cost=100) for name in "ab"))
    order = [place.client for place in served(scheduler, holder, 20)]
    assert order.count("a") == pytest.approx(18, abs=1)


# -- classes


def test_a_class_that_was_idle_has_saved_nothing_up() -> None:
    policies = policies_of(
        max_in_flight=1, max_waiting=50, classes={"medium": {"weight": 1}, "low": {"weight": 1}}
    )
    scheduler, holder = full(policies)
    waiting(scheduler, *(of_tenant("a", policies) for _ in range(15)))
    *_, holder = served(scheduler, holder, 5)
    waiting(scheduler, *(of_tenant("b", policies, priority="low") for _ in range(5)))
    order = [place.klass for place in served(scheduler, holder, 4)]
    assert order == ["low", "medium", "low", "medium"]


def capped() -> tuple[Scheduler, PolicySet]:
    """Low ones wait behind a limit of their own; thirty others have passed."""
    low = {"weight": 1, "max_share": 0.5}
    policies = policies_of(
        max_in_flight=2, max_waiting=99, classes={"medium": {"weight": 1}, "low": low}
    )
    scheduler = scheduler_of(policies)
    for _ in range(11):
        scheduler.ask(of_tenant("a", policies, priority="low"), 0.0, 0.0, unheard)
    other = scheduler.ask(of_tenant("b", policies), 0.0, 0.0, unheard)
    waiting(scheduler, *(of_tenant("b", policies) for _ in range(49)))
    *_, other = served(scheduler, other, 30)
    assert other.klass == "medium"
    classes = {"medium": {"weight": 1}, "low": {"weight": 1}}
    scheduler.apply(policies_of(max_in_flight=2, max_waiting=99, classes=classes))
    return scheduler, policies


def test_what_a_cap_kept_from_a_class_is_not_made_up_for_when_it_is_raised() -> None:
    scheduler, _ = capped()
    lows = [place for place in scheduler.places_waiting() if place.klass == "low"]
    positions = [scheduler.position(place) for place in lows[:5]]
    assert max(positions) >= 8
    (first, *_) = scheduler.running
    order = [place.klass for place in served(scheduler, first, 8)]
    assert order.count("medium") >= 3


def test_a_class_that_had_nobody_waiting_is_not_old() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=50, ageing=20.0, queue=1e9)
    scheduler = scheduler_of(policies)
    low = of_tenant("a", policies, priority="low")
    scheduler.leave(scheduler.ask(low, 0.0, 0.0, unheard), 1.0, 0.0)
    holder = scheduler.ask(of_tenant("x", policies), 100.0, 0.0, unheard)
    highs = [of_tenant("b", policies, priority="high") for _ in range(3)]
    waiting(scheduler, low, *highs, now=100.0)
    assert [place.klass for place in served(scheduler, holder, 3, 101.0)] == ["high"] * 3


def test_a_class_is_not_old_because_of_one_that_a_limit_holds_back() -> None:
    policies = policies_of(
        max_in_flight=2, max_waiting=9, ageing=20.0, queue=1e9, tenants={"a": {"max_in_flight": 1}}
    )
    scheduler = scheduler_of(policies)
    low = of_tenant("a", policies, priority="low")
    high = of_tenant("h", policies, priority="high")
    scheduler.ask(low, 0.0, 0.0, unheard)
    holder = scheduler.ask(high, 0.0, 0.0, unheard)
    waiting(scheduler, low, high, high, now=0.0)
    (holder,) = served(scheduler, holder, 1, 10.0)  # before the limit of a, nobody of low may
    waiting(scheduler, of_tenant("b", policies, priority="low"), now=29.0)
    assert [place.klass for place in served(scheduler, holder, 1, 30.0)] == ["high"]


def test_a_class_is_not_old_because_of_one_that_has_just_come() -> None:
    policies = policies_of(
        max_in_flight=2, max_waiting=9, ageing=20.0, queue=1e9, tenants={"a": {"max_in_flight": 1}}
    )
    scheduler = scheduler_of(policies)
    low = of_tenant("a", policies, priority="low")
    high = of_tenant("h", policies, priority="high")
    scheduler.ask(low, 0.0, 0.0, unheard)
    holder = scheduler.ask(high, 0.0, 0.0, unheard)
    waiting(scheduler, low, now=0.0)
    waiting(scheduler, of_tenant("b", policies, priority="low"), high, high, high, now=10.0)
    (holder,) = served(scheduler, holder, 1, 15.0)  # b is passed, and has waited for five seconds
    assert holder.klass == "high"
    assert [place.klass for place in served(scheduler, holder, 1, 21.0)] == ["high"]


def test_the_first_slot_after_a_long_hold_goes_by_weights() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=300, ageing=20.0, queue=1e9)
    scheduler, holder = full(policies)
    waiting(scheduler, *(of_tenant("a", policies, priority="low") for _ in range(99)), now=1.0)
    waiting(scheduler, *(of_tenant("b", policies, priority="high") for _ in range(9)), now=22.0)
    (holder,) = served(scheduler, holder, 1, 22.5)
    assert holder.klass == "high", "nobody has passed low so far"
    assert [place.klass for place in served(scheduler, holder, 1, 45.0)] == ["low"]


def test_what_is_over_is_not_kept_for_its_deadline() -> None:
    policies = policies_of(max_in_flight=1, max_waiting=9)
    scheduler, _ = full(policies)
    waiting(scheduler, of_tenant("a", policies))
    for _ in range(500):
        (place,) = waiting(scheduler, of_tenant("b", policies))
        scheduler.leave(place, 0.0, 0.0)
    assert len(scheduler._deadlines) < 100


def test_what_was_cached_gives_its_client_turns_back() -> None:
    """Both asked for as much; what one took was mostly cached."""
    policies = policies_of(max_in_flight=1, max_waiting=9)
    order: dict[float | None, list[str]] = {}
    for took in (None, 100.0):
        scheduler, first = full(policies)
        waiting(scheduler, *(of_tenant(t, policies, cost=1000.0) for t in "abababab"))
        names: list[str] = []
        for _ in range(8):
            mine = took if names[-1:] == ["a"] else None
            scheduler.leave(first, 0.0, 0.0, tokens=1000, took=mine)
            (first,) = scheduler.turn(0.0)
            names.append(first.client.removeprefix("tenant "))
        order[took] = names
    assert order[None] == [*"abababab"]
    assert order[100.0] == [*"abaaabbb"]
