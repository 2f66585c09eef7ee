"""Which prompts are read next, on costs that are made up."""

from __future__ import annotations

import random

from mlxd.core.footprint import MOST_PADDED, PREFILL_ROWS, SMALL_TOKENS, STEP_TOKENS
from mlxd.worker.prefill import Chunk, Unread, next_chunk


def unread(uid: int, left: int, *, read: int = 0, stop: int = 0, begun: bool = False) -> Unread:
    return Unread(uid, read, left, stop or left, begun)


def half_a_thousand(rows: int, read: int) -> int:
    return 512 // rows


def uids(chunk: Chunk | None) -> list[int]:
    assert chunk is not None
    return [row.uid for row in chunk.rows]


def choose(*waiting: Unread, room: int = 8, due: bool = False) -> Chunk | None:
    return next_chunk(waiting, half_a_thousand, room, patient_are_due=due)


def test_without_prompts_there_is_no_chunk():
    assert choose() is None
    assert choose(unread(1, 5), room=0) is None


def test_short_prompts_share_a_chunk_and_are_read_to_their_ends():
    chunk = choose(*[unread(n, 100) for n in range(9)])
    assert uids(chunk) == [0, 1, 2, 3, 4]
    assert chunk is not None
    assert (chunk.width, chunk.short) == (100, True)


def test_a_short_prompt_goes_before_long_ones():
    assert uids(choose(unread(1, 5000, read=512, begun=True), unread(2, 20))) == [2]


def test_every_other_chunk_is_a_long_ones_to_its_end():
    waiting = unread(1, 5000), unread(2, 20)
    assert uids(choose(*waiting, due=True)) == [1]
    assert uids(choose(*waiting[1:], due=True)) == [2]
    rest = unread(1, 30, read=5000, begun=True)
    assert uids(choose(rest, waiting[1])) == [2]
    assert uids(choose(rest, waiting[1], due=True)) == [1]


def test_the_shortest_comes_first_and_in_every_other_chunk_whoever_waits_longest():
    waiting = [unread(1, 400), unread(2, 500), unread(3, 20)]
    assert uids(choose(*waiting)) == [3]
    assert uids(choose(*waiting, due=True)) == [1]


def test_long_prompts_are_read_one_after_the_other():
    first, second = unread(1, 5000), unread(2, 4000)
    chunk = choose(first, second)
    assert chunk is not None
    assert (uids(chunk), chunk.width, chunk.short) == ([1], 512, False)
    second.begun = True
    assert uids(choose(first, second)) == [2]


def test_chunks_of_long_ones_may_be_shorter():
    def midway(rows: int, read: int) -> int:
        return 300 // rows

    for waiting, width in (((unread(1, 400),), 400), ((unread(1, 5000),), 300)):
        chunk = next_chunk(waiting, half_a_thousand, 8, patient_are_due=False, midway=midway)
        assert chunk is not None
        assert chunk.width == width


def test_one_that_must_stop_on_its_way_is_read_by_itself_up_to_there():
    chunk = choose(unread(1, 100, stop=40), unread(2, 4000))
    assert chunk is not None
    assert (uids(chunk), chunk.width) == ([1], 40)


def test_padding_is_not_worth_any_price():
    assert uids(choose(unread(1, 20), unread(2, 250))) == [1]
    assert uids(choose(unread(1, 20), unread(2, 60))) == [1, 2]
    assert uids(choose(unread(1, 20), unread(2, 80, read=6000, begun=True))) == [1]


def test_without_padding_only_prompts_with_as_much_left_share_a_chunk():
    waiting = [unread(1, 30), unread(2, 20), unread(3, 20, read=32), unread(4, 21)]
    for due, chosen in ((False, [2, 3]), (True, [1])):
        chunk = next_chunk(waiting, half_a_thousand, 8, patient_are_due=due, padded=False)
        assert uids(chunk) == chosen


def test_neither_the_chunk_nor_the_caches_are_padded_much():
    """Rows that were found: first one has much more to read, then one has much more behind it; and
    then their caches would be longer than that of the longest will be."""
    assert uids(choose(unread(1, 20, read=1000), unread(2, 250, read=1000))) == [1]
    assert uids(choose(unread(1, 80), unread(2, 80, read=900))) == [1]
    assert uids(choose(unread(1, 20, read=1000), unread(2, 100, read=850))) == [1]
    assert uids(choose(unread(1, 20, read=1000), unread(2, 20, read=900))) == [1, 2]


def test_who_waits_for_a_place_is_in_nobodys_way():
    waiting = [unread(n, 50) for n in range(6)]
    assert uids(choose(*waiting, room=2)) == [0, 1]
    waiting[5].begun = True
    assert uids(choose(*waiting, room=0)) == [5]


def test_any_mixture_is_read_within_bounds():
    chance = random.Random(3)
    for _ in range(200):
        waiting = [unread(n, chance.choice((0, 1, 30, 200, 500, 900, 3000))) for n in range(12)]
        due, chunks = False, 0
        while waiting:
            chunk = next_chunk(waiting, half_a_thousand, 32, patient_are_due=due)
            assert chunk is not None
            check(chunk)
            for row in chunk.rows:
                row.read, row.left = row.read + min(row.left, chunk.width), row.left - chunk.width
                row.stop, row.begun = max(row.left, 0), True
            waiting = [row for row in waiting if row.left > 0]
            due, chunks = chunk.short and not due, chunks + 1
        assert chunks < 100


def check(chunk: Chunk) -> None:
    rows = chunk.rows
    assert len(rows) * chunk.width <= 512
    assert 1 <= len(rows) <= PREFILL_ROWS
    assert not chunk.short or all(row.left <= chunk.width for row in rows)
    if len(rows) > 1:
        needed = sum(row.left for row in rows)
        assert len(rows) * chunk.width <= max(MOST_PADDED * needed, SMALL_TOKENS)
        longest = -(-max(row.end for row in rows) // STEP_TOKENS) * STEP_TOKENS
        assert max(row.read for row in rows) + chunk.width <= longest
