from mlxd.control.eviction import Candidate, Plan, plan_eviction, plan_trim


def candidate(key, *, size=10, in_use=False, last_used=0.0, use_count=1, preloaded=False):
    return Candidate(key, size, in_use, last_used, use_count, preloaded)


def plan(loaded, *, needed=10, available=1000, max_loaded=None):
    return plan_eviction(
        loaded, needed_bytes=needed, available_bytes=available, max_loaded=max_loaded
    )


def test_nothing_is_evicted_for_what_fits():
    assert plan([candidate("a")]) == Plan(())


def test_the_least_recently_used_goes_first():
    loaded = [candidate("new", last_used=9.0), candidate("old", last_used=1.0)]
    assert plan(loaded, max_loaded=2).victims == ("old",)


def test_use_count_only_breaks_ties():
    loaded = [candidate("often", use_count=9), candidate("seldom", use_count=1)]
    assert plan(loaded, max_loaded=2).victims == ("seldom",)
    loaded = [candidate("often", use_count=9, last_used=1.0), candidate("seldom", last_used=2.0)]
    assert plan(loaded, max_loaded=2).victims == ("often",)


def test_what_is_in_use_stays_even_when_it_is_in_the_way():
    loaded = [candidate("a", in_use=True), candidate("b", in_use=True)]
    assert plan(loaded, max_loaded=2) == Plan((), "count")
    assert plan(loaded, needed=2000) == Plan((), "memory")


def test_nobody_is_evicted_for_what_would_not_fit_anyway():
    loaded = [candidate("idle", size=100), candidate("busy", size=1000, in_use=True)]
    assert plan(loaded, needed=500, available=50) == Plan((), "memory")


def test_enough_are_evicted_and_no_more():
    loaded = [candidate(key, size=100, last_used=at) for key, at in (("a", 1), ("b", 2), ("c", 3))]
    assert plan(loaded, needed=220, available=50).victims == ("a", "b")


def test_without_a_reading_of_memory_only_the_count_decides():
    assert plan([candidate("a")], needed=10**15, available=None) == Plan(())
    assert plan([candidate("a")], available=None, max_loaded=1).victims == ("a",)


def test_preloaded_models_go_last_and_go():
    loaded = [
        candidate("listed", last_used=1.0, preloaded=True),
        candidate("new", last_used=9.0),
        candidate("old", last_used=2.0),
    ]
    assert plan(loaded, max_loaded=3).victims == ("old",)
    assert plan(loaded, max_loaded=1).victims == ("old", "new", "listed")


def test_a_trim_takes_what_is_beyond_the_limit_and_never_what_is_in_use():
    loaded = [
        candidate("busy", in_use=True),
        candidate("listed", preloaded=True),
        candidate("new", last_used=9.0),
        candidate("old", last_used=2.0),
    ]
    assert plan_trim(loaded, 9) == ()
    assert plan_trim(loaded, 4) == ()
    assert plan_trim(loaded, 3) == ("old",)
    assert plan_trim(loaded, 1) == ("old", "new", "listed")
    assert plan_trim([candidate("busy", in_use=True)] * 3, 1) == ()
