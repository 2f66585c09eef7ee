"""The policies in force."""

from __future__ import annotations

from mlxd.policy.load import Override, PolicySet, load
from mlxd.policy.store import PolicyStore


def test_the_first_set_is_in_force_at_once() -> None:
    first = load()
    assert PolicyStore(first).current is first


def test_a_new_set_becomes_the_next_generation() -> None:
    store = PolicyStore(load())
    store.replace(load(None, [Override("limits.concurrency.max_in_flight", "2", "a test")]))
    assert store.current.generation == 2
    assert store.current.limits.concurrency.max_in_flight == 2
    assert store.replace(load()).generation == 3


def test_who_kept_the_old_set_keeps_it_whole() -> None:
    store = PolicyStore(load())
    kept = store.current
    store.replace(load(None, [Override("timeouts.generation", "5s", "a test")]))
    assert (kept.generation, kept.timeouts.generation) == (1, 300.0)


def test_a_new_set_is_applied_in_order_and_already_in_force() -> None:
    store = PolicyStore(load())
    applied: list[tuple[str, PolicySet, bool]] = []
    store.subscribe(lambda new: applied.append(("a", new, store.current is new)))
    store.subscribe(lambda new: applied.append(("b", new, store.current is new)))
    store.replace(load())
    assert applied == [("a", store.current, True), ("b", store.current, True)]


def test_a_subscription_ends() -> None:
    store = PolicyStore(load())
    applied: list[PolicySet] = []
    end = store.subscribe(applied.append)
    store.replace(load())
    end()
    store.replace(load())
    assert [new.generation for new in applied] == [2]


def test_one_may_end_its_subscription_while_it_is_applied() -> None:
    store = PolicyStore(load())
    applied: list[str] = []

    def once(_: PolicySet) -> None:
        applied.append("a")
        end()

    end = store.subscribe(once)
    store.subscribe(lambda _: applied.append("b"))
    store.replace(load())
    store.replace(load())
    assert applied == ["a", "b", "b"]
