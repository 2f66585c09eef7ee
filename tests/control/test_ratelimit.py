import pytest

from mlxd.control.ratelimit import Quota, RuleWindows, SlidingWindow
from mlxd.policy.schema import RateLimit

QUOTA = Quota(requests=3, window=60.0)


def test_a_request_over_the_quota_is_told_when_one_would_pass():
    window = SlidingWindow()
    for second in (0.0, 10.0, 20.0):
        assert window.take("a", QUOTA, second) is None
    assert window.take("a", QUOTA, 30.0) == 30.0
    assert window.take("a", QUOTA, 59.9) is not None
    assert window.take("a", QUOTA, 60.0) is None


def test_a_refused_request_does_not_count():
    window = SlidingWindow()
    for _ in range(3):
        window.take("a", QUOTA, 0.0)
    for _ in range(10):
        assert window.take("a", QUOTA, 1.0) == 59.0
    assert window.take("a", QUOTA, 60.0) is None


def test_clients_do_not_share_a_quota():
    window = SlidingWindow()
    for _ in range(3):
        window.take("a", QUOTA, 0.0)
    assert window.take("b", QUOTA, 0.0) is None


def test_a_refund_makes_room_again():
    window = SlidingWindow()
    for second in (0.0, 1.0, 2.0):
        window.take("a", QUOTA, second)
    window.refund("a", 1.0)
    window.refund("a", 1.0)
    assert window.remaining("a", QUOTA, 3.0) == (1, 57.0)
    assert window.take("a", QUOTA, 3.0) is None
    assert window.take("a", QUOTA, 3.0) is not None


def test_a_smaller_quota_waits_for_the_request_that_makes_room():
    window = SlidingWindow()
    for second in (0.0, 10.0, 20.0):
        window.take("a", QUOTA, second)
    assert window.take("a", Quota(requests=1, window=60.0), 30.0) == 50.0


def test_the_longest_silent_client_is_forgotten_first():
    window = SlidingWindow()
    quota = Quota(requests=1, window=60.0, max_keys=2)
    window.take("a", quota, 0.0)
    window.take("b", quota, 1.0)
    window.take("c", quota, 2.0)
    assert len(window) == 2
    assert window.take("a", quota, 3.0) is None
    assert window.take("c", quota, 3.0) is not None


def test_what_is_left_under_a_smaller_quota_waits_for_the_request_that_makes_room():
    window = SlidingWindow()
    for second in (0.0, 10.0, 20.0):
        window.take("a", QUOTA, second)
    assert window.remaining("a", Quota(requests=1, window=60.0), 30.0) == (0, 50.0)


def test_a_longer_window_counts_what_is_still_remembered():
    window = SlidingWindow()
    for second in (0.0, 55.0, 70.0):
        window.take("a", QUOTA, second)
    longer = Quota(requests=3, window=600.0)
    assert window.take("a", longer, 71.0) is None  # the first one had left the shorter window
    assert window.take("a", longer, 72.0) == 583.0


def rule(name="r", **values):
    return RateLimit(name=name, **values)


def used(windows, one, times=3):
    """Use a rule's quota up; returns the rule's window."""
    window = windows.of(one)
    for _ in range(times):
        window.take("a", QUOTA, 0.0)
    return window


def test_a_rule_keeps_its_window_whatever_else_changes():
    windows = RuleWindows()
    window = used(windows, rule("a"))
    windows.apply([rule("new"), rule("a", requests=1, window="5s", mode="dry_run")])
    assert windows.of(rule("a")) is window
    assert len(windows.of(rule("new"))) == 0


def test_a_rule_of_a_new_name_inherits_from_the_one_that_has_gone():
    windows = RuleWindows()
    window = used(windows, rule("a"))
    windows.apply([rule("b")])
    assert windows.of(rule("b")) is window
    assert windows.of(rule("a")) is window  # a request that was on its way during the edit
    windows.apply([rule("c")])
    assert windows.of(rule("c")) is window


def test_a_rule_that_counts_by_something_else_inherits_nothing():
    windows = RuleWindows()
    used(windows, rule("a"))
    other = rule("a").model_copy(update={"key": "user"})
    windows.apply([other])
    assert len(windows.of(other)) == 0
    used(windows, other)
    windows.apply([rule("b")])
    assert len(windows.of(rule("b"))) == 0


def test_a_rule_that_went_and_comes_back_starts_empty():
    windows = RuleWindows()
    used(windows, rule("a"))
    windows.apply([])
    windows.apply([rule("a")])
    assert len(windows.of(rule("a"))) == 0


def test_both_halves_of_a_split_rule_inherit_and_then_count_for_themselves():
    windows = RuleWindows()
    used(windows, rule("a"), times=2)
    windows.apply([rule("b"), rule("c")])
    first, second = windows.of(rule("b")), windows.of(rule("c"))
    assert first.take("a", QUOTA, 1.0) is None
    assert first.take("a", QUOTA, 1.0) == 59.0
    assert second.take("a", QUOTA, 1.0) is None


@pytest.mark.parametrize("order", [1, -1])
def test_the_one_that_remembers_most_is_inherited_from(order):
    windows = RuleWindows()
    short, long = rule("short", window="1s"), rule("long", window="1h")
    for one in (short, long)[::order]:
        windows.of(one)
    remembered = windows.of(long)
    windows.apply([rule("new")])
    assert windows.of(rule("new")) is remembered
