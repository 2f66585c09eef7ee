"""Records kept for whoever comes back."""

from __future__ import annotations

from mlxd.server.backlog import Backlog

RECORD = (
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"delta":"%d"}]}\nid: c1-%d\n\n'
)


def test_nothing_is_lost_and_little_is_taken() -> None:
    backlog, said, grown = Backlog(), b"", 0
    for number in range(2000):
        record = RECORD % (number, number)
        said += record
        grown += backlog.add(record)
        if number % 300 == 0:
            assert bytes(backlog) == said
            grown += backlog.close()
            assert bytes(backlog) == said
    assert bytes(backlog) == said
    grown += backlog.close()
    assert grown == backlog.size < len(said) / 5
    assert bytes(backlog) == said


def test_what_is_cleared_takes_nothing() -> None:
    backlog = Backlog()
    for number in range(500):
        backlog.add(RECORD % (number, number))
    backlog.clear()
    assert (bytes(backlog), backlog.size, backlog.close()) == (b"", 0, 0)
    backlog.add(b"one")
    assert bytes(backlog) == b"one"


def test_one_record_may_be_of_any_size() -> None:
    backlog = Backlog()
    assert backlog.add(b"x" * 100_000) > 0
    assert backlog.close() == 0
    assert bytes(backlog) == b"x" * 100_000


def test_what_is_behind_a_mark_is_told_wherever_that_is() -> None:
    backlog, records = Backlog(), [RECORD % (number, number) for number in range(500)]
    for record in records:
        backlog.add(record)
    for number in 0, 1, 250, 498, 499:
        assert backlog.behind(b"\nid: c1-%d\n\n" % number) == b"".join(records[number + 1 :])
    assert backlog.behind(b"\nid: c1-500\n\n") is None
    backlog.close()
    assert backlog.behind(b"\nid: c1-499\n\n") == b""
    assert Backlog().behind(b"\nid: c1-0\n\n") is None


def test_no_more_is_unpacked_than_somebody_misses() -> None:
    backlog = Backlog()
    for number in range(5000):
        backlog.add(RECORD % (number, number))
    backlog.close()
    *others, last = backlog._pieces
    backlog._pieces = [*(b"not to be unpacked" for _ in others), last]
    assert backlog.behind(b"\nid: c1-4998\n\n") == RECORD % (4999, 4999)
