import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.control.eviction import (
    Candidate,
    Plan,
    Protection,
    Want,
    in_order,
    plan_eviction,
    plan_excess,
)
from tests.support.examples import examples

NOW = 100.0
NONE = Protection()


def candidate(key, *, size=10, in_use=False, last_used=0.0, use_count=1, **more):
    return Candidate(
        key, size, in_use=in_use, last_used=last_used, use_count=use_count,
        **({"weights": size} | more),
    )  # fmt: skip


def plan(loaded, *, needed=10, free=1000, max_loaded=None, protection=NONE, **more):
    want = Want(needed, free, max_models=max_loaded, **more)
    return plan_eviction(loaded, want, protection, NOW)


def test_nothing_is_evicted_for_what_fits():
    assert plan([candidate("a")]) == Plan()


def test_the_least_recently_used_goes_first():
    loaded = [candidate("new", last_used=9.0), candidate("old", last_used=1.0)]
    assert plan(loaded, max_loaded=2).victims == ("old",)


def test_use_count_only_breaks_ties():
    loaded = [candidate("often", use_count=9), candidate("seldom", use_count=1)]
    assert plan(loaded, max_loaded=2).victims == ("seldom",)
    loaded = [candidate("often", use_count=9, last_used=1.0), candidate("seldom", last_used=2.0)]
    assert plan(loaded, max_loaded=2).victims == ("often",)


def test_what_is_in_use_stays_even_when_it_is_in_the_way():
    loaded = [candidate("a", in_use=True), candidate("b", in_use=True, size=2000)]
    assert plan(loaded, max_loaded=2) == Plan((), "count", in_the_way=("a",))
    assert plan(loaded, needed=2000) == Plan((), "memory", in_the_way=("b",))


def test_nobody_is_evicted_for_what_would_not_fit_anyway():
    loaded = [candidate("idle", size=100), candidate("busy", size=1000, in_use=True)]
    assert plan(loaded, needed=500, free=50) == Plan((), "memory", in_the_way=("busy",))


def test_what_would_not_fit_alone_never_will():
    loaded = [candidate("idle", size=100), candidate("busy", size=1000, in_use=True)]
    assert plan(loaded, needed=1151, free=50) == Plan((), "memory", never=True)
    assert plan([], weights=7, max_weights=6) == Plan((), "weights", never=True)


def test_enough_are_evicted_and_no_more():
    loaded = [candidate(key, size=100, last_used=at) for key, at in (("a", 1), ("b", 2), ("c", 3))]
    assert plan(loaded, needed=220, free=50).victims == ("a", "b")


def test_one_that_does_not_help_is_spared():
    loaded = [candidate("old", size=10, last_used=1.0), candidate("big", size=100, last_used=2.0)]
    assert plan(loaded, needed=150, free=50).victims == ("big",)
    assert plan(loaded, needed=160, free=50).victims == ("old", "big")


def test_promises_beyond_what_there_is_are_made_up_for():
    loaded = [candidate("a", size=100), candidate("b", size=100, last_used=1.0)]
    assert plan(loaded, needed=10, free=-50).victims == ("a",)
    assert plan(loaded, needed=10, free=-95).victims == ("a", "b")


def test_without_a_reading_of_memory_only_the_bounds_decide():
    assert plan([candidate("a")], needed=10**15, free=None) == Plan()
    assert plan([candidate("a")], free=None, max_loaded=1).victims == ("a",)


def test_weights_are_bounded_beside_memory():
    loaded = [candidate("a", size=40), candidate("b", size=30, last_used=1.0)]
    assert plan(loaded, weights=30, max_weights=100) == Plan()
    assert plan(loaded, weights=31, max_weights=100).victims == ("a",)
    assert plan(loaded, weights=90, max_weights=100).victims == ("a", "b")


def test_pinned_models_go_last_before_them_preloaded_ones_and_low_priority_first():
    loaded = [
        candidate("pinned", last_used=1.0, pinned=True, priority="low"),
        candidate("listed", last_used=1.0, preloaded=True, priority="low"),
        candidate("high", last_used=1.0, priority="high"),
        candidate("new", last_used=9.0),
        candidate("old", last_used=2.0),
        candidate("low", last_used=10.0, priority="low"),
    ]
    everyone = ("low", "old", "new", "high", "listed", "pinned")
    assert plan(loaded, max_loaded=6).victims == ("low",)
    assert plan(loaded, max_loaded=1).victims == everyone
    assert tuple(c.key for c in in_order(loaded, NONE, NOW)) == everyone


def test_one_used_just_now_is_waited_for_and_evictable_at_its_very_moment():
    used = Protection(after_use=30.0)
    assert plan([candidate("a", last_used=71.0)], max_loaded=1, protection=used) == Plan(
        (), "count", at=101.0, in_the_way=("a",)
    )
    at_last = plan([candidate("a", last_used=70.0)], max_loaded=1, protection=used)
    assert at_last.victims == ("a",)


def test_one_just_loaded_stays_for_its_time():
    times = Protection(after_use=5.0, after_load=60.0)
    waited = plan([candidate("a", loaded_at=50.0)], max_loaded=1, protection=times)
    assert (waited.obstacle, waited.at) == ("count", 110.0)


def test_the_earliest_moment_is_that_of_the_last_one_needed():
    used = Protection(after_use=30.0)
    loaded = [candidate(key, size=100, last_used=at) for key, at in (("a", 80), ("b", 85))]
    assert plan(loaded, needed=150, free=50, protection=used).at == 110.0
    assert plan(loaded, needed=250, free=50, protection=used).at == 115.0
    loaded.append(candidate("ready", size=50))
    assert plan(loaded, needed=250, free=50, protection=used) == Plan(
        (), "memory", at=115.0, in_the_way=("a", "b")
    )


def test_nothing_is_evicted_while_something_else_is_still_waited_for():
    loaded = [candidate("idle", size=100), candidate("recent", size=100, last_used=99.0)]
    waiting = plan(loaded, needed=200, free=0, protection=Protection(after_use=30.0))
    assert (waiting.victims, waiting.at) == ((), 129.0)


def excess(loaded, most, protection=NONE, now=NOW, weights=None):
    want = Want(0, None, models=0, max_models=most, max_weights=weights)
    return plan_excess(loaded, want, protection, now)


def test_a_trim_takes_what_is_beyond_the_limit_and_never_what_is_in_use():
    loaded = [
        candidate("busy", in_use=True),
        candidate("listed", preloaded=True),
        candidate("new", last_used=9.0),
        candidate("old", last_used=2.0),
    ]
    assert excess(loaded, 9).victims == ()
    assert excess(loaded, 4).victims == ()
    assert excess(loaded, 3).victims == ("old",)
    assert excess(loaded, 1).victims == ("old", "new", "listed")
    assert excess([candidate("busy", in_use=True)] * 3, 1).victims == ()
    assert excess(loaded, None, weights=25).victims == ("old", "new")


def test_a_trim_takes_what_may_go_and_says_when_the_next_may():
    loaded = [candidate("a", last_used=75.0), candidate("b", last_used=1.0), candidate("c")]
    assert excess(loaded, 0, Protection(after_use=30.0)) == Plan(("c", "b"), "count", at=105.0)
    assert excess(loaded, 0, Protection(after_use=30.0), now=math.inf).victims == ("c", "b", "a")


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.uuids(),
        frees=st.integers(0, 50),
        weights=st.integers(0, 50),
        in_use=st.booleans(),
        last_used=st.sampled_from([0.0, 80.0, 90.0, 99.0]),
        loaded_at=st.sampled_from([-math.inf, 60.0, 95.0]),
        pinned=st.booleans(),
        preloaded=st.booleans(),
        priority=st.sampled_from(["low", "normal", "high"]),
    ),
    max_size=6,
)
WANTS = st.builds(
    Want,
    bytes=st.integers(0, 150),
    free=st.none() | st.integers(-20, 60),
    weights=st.integers(0, 50),
    models=st.integers(0, 1),
    max_models=st.none() | st.integers(1, 5),
    max_weights=st.none() | st.integers(1, 200),
)


@given(CANDIDATES, WANTS)
@settings(deadline=None, derandomize=True, max_examples=examples(150, 400))
def test_every_plan_is_enough_needed_and_spares_who_is_protected(loaded, want):
    protection = Protection(after_use=15.0, after_load=30.0)
    made = plan_eviction(loaded, want, protection, NOW)
    by_key = {c.key: c for c in loaded}
    victims = [by_key[key] for key in made.victims]
    assert all(not c.in_use and c.protected_until(protection) <= NOW for c in victims)
    if not made.obstacle:
        assert want.obstacle(loaded, victims) == ""
        for one in victims:
            assert want.obstacle(loaded, [c for c in victims if c is not one])
        return
    assert not victims
    assert made.never == bool(want.obstacle(loaded, loaded))
    if made.at is not None:
        later = plan_eviction(loaded, want, protection, made.at)
        assert made.at > NOW
        assert later.victims == made.in_the_way
        assert not later.obstacle


@pytest.mark.parametrize("bound", ["max_models", "max_weights"])
def test_a_need_of_a_loaded_model_adds_no_model(bound):
    want = Want(5, 10, models=0, **{bound: 1})
    assert plan_eviction([candidate("a", size=1)], want, NONE, NOW) == Plan()
