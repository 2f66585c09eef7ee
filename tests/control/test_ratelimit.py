import random
from dataclasses import replace
from fractions import Fraction

import pytest

from mlxd.control.ratelimit import Quota, Tallies, Tally
from mlxd.policy.schema import RateLimit

QUOTA = Quota(requests=3, window=60.0)
ALGORITHMS = ("sliding_window", "token_bucket", "gcra")


def test_a_request_over_the_quota_is_told_when_one_would_pass():
    window = Tally()
    for second in (0.0, 10.0, 20.0):
        assert window.take("a", QUOTA, second) is None
    assert window.take("a", QUOTA, 30.0) == 30.0
    assert window.take("a", QUOTA, 59.9) is not None
    assert window.take("a", QUOTA, 60.0) is None


def test_a_refused_request_does_not_count():
    window = Tally()
    for _ in range(3):
        window.take("a", QUOTA, 0.0)
    for _ in range(10):
        assert window.take("a", QUOTA, 1.0) == 59.0
    assert window.take("a", QUOTA, 60.0) is None


def test_clients_do_not_share_a_quota():
    window = Tally()
    for _ in range(3):
        window.take("a", QUOTA, 0.0)
    assert window.take("b", QUOTA, 0.0) is None


def test_a_refund_makes_room_again():
    window = Tally()
    for second in (0.0, 1.0, 2.0):
        window.take("a", QUOTA, second)
    window.refund("a", 1.0)
    window.refund("a", 1.0)
    assert window.remaining("a", QUOTA, 3.0) == (1, 57.0)
    assert window.take("a", QUOTA, 3.0) is None
    assert window.take("a", QUOTA, 3.0) is not None


def test_a_smaller_quota_waits_for_the_request_that_makes_room():
    window = Tally()
    for second in (0.0, 10.0, 20.0):
        window.take("a", QUOTA, second)
    assert window.take("a", Quota(requests=1, window=60.0), 30.0) == 50.0


def test_the_longest_silent_client_is_forgotten_first():
    window = Tally()
    quota = Quota(requests=1, window=60.0, max_keys=2)
    window.take("a", quota, 0.0)
    window.take("b", quota, 1.0)
    window.take("c", quota, 2.0)
    assert len(window) == 2
    assert window.take("a", quota, 3.0) is None
    assert window.take("c", quota, 3.0) is not None


def test_who_asks_again_is_not_the_longest_silent():
    window = Tally()
    quota = Quota(requests=2, window=60.0, max_keys=2)
    for second, key in enumerate("abac"):
        window.take(key, quota, float(second))
    assert window.counted("a", quota, 4.0) == 2
    assert window.counted("b", quota, 4.0) == 0


def test_what_is_left_under_a_smaller_quota_waits_for_the_request_that_makes_room():
    window = Tally()
    for second in (0.0, 10.0, 20.0):
        window.take("a", QUOTA, second)
    assert window.remaining("a", Quota(requests=1, window=60.0), 30.0) == (0, 50.0)


def test_a_longer_window_counts_what_is_still_remembered():
    window = Tally()
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
    windows = Tallies()
    window = used(windows, rule("a"))
    windows.apply([rule("new"), rule("a", requests=1, window="5s", mode="dry_run")])
    assert windows.of(rule("a")) is window
    assert len(windows.of(rule("new"))) == 0


def test_a_rule_of_a_new_name_inherits_from_the_one_that_has_gone():
    windows = Tallies()
    window = used(windows, rule("a"))
    windows.apply([rule("b")])
    assert windows.of(rule("b")) is window
    assert windows.of(rule("a")) is window  # a request that was on its way during the edit
    windows.apply([rule("c")])
    assert windows.of(rule("c")) is window


def test_a_rule_that_counts_by_something_else_inherits_nothing():
    windows = Tallies()
    used(windows, rule("a"))
    other = rule("a").model_copy(update={"key": "user"})
    windows.apply([other])
    assert len(windows.of(other)) == 0
    used(windows, other)
    windows.apply([rule("b")])
    assert len(windows.of(rule("b"))) == 0


def test_a_rule_whose_name_counts_by_something_else_now_leaves_its_counts_to_the_heir_alone():
    windows = Tallies()
    window = used(windows, rule("a"))
    other = rule("a").model_copy(update={"key": "client_ip"})
    windows.apply([other, rule("b")])
    assert windows.of(rule("b")) is windows.of(rule("a")) is window
    assert len(windows.of(other)) == 0
    assert windows.of(other).take("a", QUOTA, 1.0) is None
    assert windows.of(rule("b")).remaining("a", QUOTA, 1.0)[0] == 0


def test_what_comes_late_by_a_rule_that_has_gone_does_not_count_by_its_namesake():
    windows = Tallies()
    other = rule("a").model_copy(update={"key": "user"})
    used(windows, rule("a"))
    windows.apply([other])
    used(windows, rule("a"))
    assert len(windows.of(other)) == 0


def test_a_rule_that_went_and_comes_back_starts_empty():
    windows = Tallies()
    used(windows, rule("a"))
    windows.apply([])
    windows.apply([rule("a")])
    assert len(windows.of(rule("a"))) == 0


def test_both_halves_of_a_split_rule_inherit_and_then_count_for_themselves():
    windows = Tallies()
    used(windows, rule("a"), times=2)
    windows.apply([rule("b"), rule("c")])
    first, second = windows.of(rule("b")), windows.of(rule("c"))
    assert first.take("a", QUOTA, 1.0) is None
    assert first.take("a", QUOTA, 1.0) == 59.0
    assert second.take("a", QUOTA, 1.0) is None


@pytest.mark.parametrize("order", [1, -1])
def test_the_one_that_remembers_most_is_inherited_from(order):
    windows = Tallies()
    short, long = rule("short", window="1s"), rule("long", window="1h")
    for one in (short, long)[::order]:
        windows.of(one)
    remembered = windows.of(long)
    windows.apply([rule("new")])
    assert windows.of(rule("new")) is remembered


BUCKET = Quota(requests=3, window=6.0, algorithm="token_bucket")
SPACED = Quota(requests=3, window=6.0, algorithm="gcra")


def test_a_saved_up_quota_goes_at_once_and_fills_up_evenly():
    tally = Tally()
    assert [tally.take("a", BUCKET, 100.0) for _ in range(4)] == [None, None, None, 2.0]
    assert tally.take("a", BUCKET, 101.5) == 0.5
    assert tally.take("a", BUCKET, 102.0) is None
    assert tally.take("a", BUCKET, 102.0) == 2.0
    assert [tally.take("a", BUCKET, 110.0) for _ in range(4)] == [None, None, None, 2.0]


def test_what_is_spaced_evenly_saves_nothing_up():
    tally = Tally()
    assert tally.take("a", SPACED, 100.0) is None
    assert tally.take("a", SPACED, 101.5) == 0.5
    assert tally.take("a", SPACED, 102.0) is None
    assert [tally.take("a", SPACED, 200.0) for _ in range(2)] == [None, 2.0]


def test_what_is_left_of_a_bucket_and_when_there_is_more():
    tally = Tally()
    assert tally.remaining("a", BUCKET, 0.0) == (3, 0.0)
    tally.take("a", BUCKET, 0.0)
    assert tally.remaining("a", BUCKET, 0.5) == (2, 1.5)
    tally.take("a", BUCKET, 0.5)
    tally.take("a", BUCKET, 0.5)
    assert tally.remaining("a", BUCKET, 0.5) == (0, 1.5)
    assert tally.remaining("a", BUCKET, 6.5) == (3, 0.0)
    assert tally.remaining("a", SPACED, 6.5) == (1, 0.0)
    tally.take("a", SPACED, 6.5)
    assert tally.remaining("a", SPACED, 7.0) == (0, 1.5)


@pytest.mark.parametrize("algorithm", ["token_bucket", "gcra"])
def test_a_refund_makes_room_whatever_the_algorithm(algorithm):
    tally = Tally()
    quota = replace(BUCKET, algorithm=algorithm)
    for _ in range(quota.burst):
        assert tally.take("a", quota, 1.0) is None
    assert tally.take("a", quota, 1.0) == 2.0
    tally.refund("a", 1.0)
    assert tally.take("a", quota, 1.0) is None
    tally.refund("a", 0.5)  # nothing was counted then
    assert tally.take("a", quota, 1.0) == 2.0


@pytest.mark.parametrize("before", ALGORITHMS)
@pytest.mark.parametrize("after", ALGORITHMS)
def test_a_change_of_algorithm_is_no_free_quota(before, after):
    """What has gone at once is gone; and nothing passes that the new one would not have let."""
    tally = Tally()
    old, new = (Quota(4, 8.0, algorithm=algorithm) for algorithm in (before, after))
    taken = sum(tally.take("a", old, 0.0) is None for _ in range(9))
    assert taken == old.burst
    assert tally.remaining("a", new, 0.0)[0] == max(0, new.burst - taken)
    admitted = [0.0] * taken
    for tick in range(1, 60):
        if tally.take("a", old, tick / 2) is None:
            admitted.append(tick / 2)
    naive = Naive(4, 16, after)
    naive.times = [int(at * 2) for at in admitted]
    assert naive.passes(60) or tally.take("a", new, 30.0) is not None


def test_fewer_requests_hold_at_once_for_a_bucket():
    tally = Tally()
    for _ in range(3):
        tally.take("a", BUCKET, 0.0)
    assert tally.take("a", replace(BUCKET, requests=1), 1.0) == pytest.approx(5.0)
    assert tally.take("a", replace(BUCKET, requests=6), 1.0) is None  # 3 more were allowed


def test_who_is_silent_for_a_window_takes_no_memory():
    tally = Tally()
    for number in range(1000):
        tally.take(f"client {number}", QUOTA, float(number))
        assert len(tally) <= 61
    quota = replace(QUOTA, algorithm="token_bucket")
    tally.take("one", quota, 5000.0)
    for number in range(40):
        tally.take("one", quota, 5000.0 + 21 * number)
    assert len(tally) == 1


class Naive:
    """What an algorithm is, said in another way: by all that was ever counted."""

    def __init__(self, requests, window, algorithm):
        self.requests, self.window, self.algorithm = requests, window, algorithm
        self.times = []

    def passes(self, now):
        if self.algorithm == "sliding_window":
            return sum(now - self.window < at for at in self.times) < self.requests
        if self.algorithm == "gcra":
            return not self.times or now - self.times[-1] >= Fraction(self.window, self.requests)
        tokens, before = Fraction(self.requests), 0  # of a bucket that is filled drop by drop
        for at in self.times:
            tokens = self._filled(tokens, at - before) - 1
            before = at
        return self._filled(tokens, now - before) >= 1

    def _filled(self, tokens, ticks):
        return min(Fraction(self.requests), tokens + Fraction(ticks * self.requests, self.window))

    def take(self, now):
        """The ticks until one passes; 0: it counts."""
        ticks = next(ticks for ticks in range(10_000) if self.passes(now + ticks))
        if not ticks:
            self.times.append(now)
        return ticks


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("seed", range(40))
def test_it_decides_as_a_naive_count_of_everything_does(algorithm, seed):
    """On whole ticks of time, so that both are exact."""
    draw = random.Random(seed)
    requests, interval = draw.randint(1, 6), draw.randint(1, 5)
    quota = Quota(requests, float(requests * interval), algorithm=algorithm)
    tally, naive = Tally(), {key: Naive(requests, requests * interval, algorithm) for key in "ab"}
    now = 0
    for _ in range(150):
        now += draw.choice([0, 0, 1, 1, 2, draw.randint(0, 3 * requests * interval)])
        key = draw.choice("ab")
        wait = naive[key].take(now)
        left, reset = tally.remaining(key, quota, float(now))
        assert (left == 0) == bool(wait)
        if wait:
            assert reset == pytest.approx(wait)
        assert tally.take(key, quota, float(now)) == (pytest.approx(wait) if wait else None)
