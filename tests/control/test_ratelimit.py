from mlxd.control.ratelimit import Quota, SlidingWindow

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
