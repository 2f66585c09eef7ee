"""Records kept for whoever comes back."""

from __future__ import annotations

import tracemalloc

from mlxd.server.told_records import ToldRecords
from tests.support.owed import whole

RECORD = (
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"delta":"%d"}]}\nid: c1-%d\n\n'
)
MARK = b"id: c1-"


def kept(count: int) -> tuple[ToldRecords, list[bytes]]:
    """So many, numbered from one."""
    told, records = ToldRecords(MARK), [RECORD % (number, number) for number in range(1, count + 1)]
    for number, record in enumerate(records, 1):
        told.add(record, number)
    told.close()
    return told, records


def test_nothing_is_lost_and_little_is_taken() -> None:
    told, said, grown = ToldRecords(MARK), b"", 0
    for number in range(1, 2001):
        record = RECORD % (number, number)
        said += record
        grown += told.add(record, number)
        if number % 300 == 0:
            grown += told.close()
            assert whole(told.behind(0)) == said
    grown += told.close()
    assert grown == told.size < len(said) / 5
    assert whole(told.behind(0)) == said


def test_what_is_cleared_takes_nothing() -> None:
    told, _ = kept(500)
    told.clear()
    assert (whole(told.behind(0)), told.size, told.close()) == (b"", 0, 0)
    told.add(b"one", 1)
    told.close()
    assert whole(told.behind(0)) == b"one"


def test_one_record_may_be_of_any_size() -> None:
    told = ToldRecords()
    assert told.add(b"x" * 100_000, 1) > 0
    assert told.close() == 0
    assert whole(told.behind(0)) == b"x" * 100_000


def test_what_is_behind_a_record_is_told_wherever_that_is() -> None:
    told, records = kept(500)
    for number in range(1, 501):
        assert whole(told.behind(number)) == b"".join(records[number:])
    assert told.behind(501) is None
    assert ToldRecords(MARK).behind(1) is None


def test_nothing_is_owed_behind_the_last() -> None:
    told, _ = kept(500)
    assert told.behind(499)
    assert told.behind(500) is not None
    assert not told.behind(500)
    assert not ToldRecords(MARK).behind(0)


def test_no_more_is_unpacked_than_somebody_misses() -> None:
    told, records = kept(5000)
    *others, last = told._pieces
    told._pieces = [*(one._replace(packed=b"not to be unpacked") for one in others), last]
    assert whole(told.behind(4999)) == records[-1]


def test_much_is_given_out_a_piece_at_a_time() -> None:
    told, records = kept(100_000)
    tracemalloc.start()
    try:
        owed, size = told.behind(2), 0
        assert owed is not None
        while owed:
            piece = owed.take()
            assert piece.endswith(b"\n\n"), "whole records"
            size += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == sum(map(len, records[2:]))
    assert peak < 256 * 1024


def test_ids_are_those_of_the_last_connection() -> None:
    told, records = kept(300)
    told.rename(b"id: c2-")
    more = [RECORD.replace(MARK, b"id: c2-") % (number, number) for number in range(301, 601)]
    for number, record in enumerate(more, 301):
        told.add(record, number)
    told.close()
    told.rename(b"id: c33-")
    said = [
        record.replace(b"\nid: c1-", b"\nid: c33-").replace(b"\nid: c2-", b"\nid: c33-")
        for record in (*records, *more)
    ]
    assert whole(told.behind(0)) == b"".join(said)
    assert whole(told.behind(299)) == b"".join(said[299:])
    assert whole(told.behind(301)) == b"".join(said[301:])
