"""What a model and its sequences take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.core.footprint import (
    PASS_BYTES,
    PREFILL_ROWS,
    Footprint,
    LayerGroup,
    Moment,
    chunk_tokens,
    is_little_padding,
)
from mlxd.core.grouping import UNBOUNDED
from mlxd.ipc.messages import Ready, decode_up, encode

FULL = LayerGroup(layers=2, token_bytes=10)
WINDOW = LayerGroup(layers=3, token_bytes=10, window=300)
STATE = LayerGroup(layers=4, token_bytes=0, constant_bytes=1000)


def test_a_batch_is_padded_to_its_longest_and_to_whole_steps() -> None:
    footprint = Footprint(0, (FULL,))
    assert footprint.cache_bytes([]) == 0
    assert footprint.cache_bytes([1]) == 2 * 256 * 10
    assert footprint.cache_bytes([257, 1, 1]) == 3 * 2 * 512 * 10


def test_a_window_keeps_no_more_than_it_sees() -> None:
    footprint = Footprint(0, (WINDOW,))
    assert footprint.cache_bytes([200]) == 3 * 256 * 10
    assert footprint.cache_bytes([5000]) == 3 * 300 * 10


def test_a_window_keeps_a_chunk_beside_what_its_tokens_see() -> None:
    assert WINDOW.bytes_of(1, 5000, chunk=100) == 3 * (300 + 99) * 10
    assert WINDOW.bytes_of(1, 200, chunk=100) == 3 * 256 * 10


def test_a_state_takes_the_same_however_long_the_sequence() -> None:
    footprint = Footprint(0, (STATE,))
    assert footprint.cache_bytes([1]) == footprint.cache_bytes([100_000]) == 4000


def test_without_moments_a_chunk_takes_work_and_scores() -> None:
    footprint = Footprint(1000, (FULL,), work_bytes=3, score_bytes=2)
    chunk = 100 * (3 + 100 * 2)
    assert footprint.peak_bytes((), [100]) == 1000 + 2 * 256 * 10 + chunk


def test_the_highest_moment_counts() -> None:
    low, high = Moment(token=1), Moment(token=5, pair=1)
    footprint = Footprint(0, (), prefill=(low, high))
    assert footprint.peak_bytes((), [100]) == 100 * (5 + 100)


def test_prompts_share_a_chunk() -> None:
    assert chunk_tokens(1, decoding=False) == 2048
    assert chunk_tokens(4, decoding=False) == 512
    assert chunk_tokens(1, decoding=True) == 1024
    assert chunk_tokens(8, decoding=True) == 128


def test_a_long_prompt_is_read_in_chunks_against_all_before() -> None:
    footprint = Footprint(0, (), prefill=(Moment(pair=1),))
    assert footprint.peak_bytes((), [5000]) == 2048 * 5000, "what was kept ends anywhere"
    assert footprint.peak_bytes((), [5000], 500) == 500 * 5000


def test_beside_a_decode_chunks_are_smaller() -> None:
    footprint = Footprint(0, (), prefill=(Moment(pair=1),))
    assert footprint.peak_bytes([10], [5120]) == 1024 * 5120


def test_a_chunk_that_ends_with_a_full_block_may_take_more_than_a_larger_one() -> None:
    footprint = Footprint(0, (), prefill=(Moment(row=1000, token=1, block=256),))
    assert footprint.peak_bytes([10], [601]) == 1000 + 512, "of 512 tokens, not of 601"
    assert footprint.peak_bytes([10], [201]) == int(1000 * 201**2 / 256**2) + 201


def test_a_first_chunk_has_moments_of_its_own() -> None:
    footprint = Footprint(0, (), first=(Moment(token=7),), prefill=(Moment(token=1),))
    assert footprint.peak_bytes((), [2048]) == 7 * 2048
    assert footprint.peak_bytes((), [2048], 1024) == 7 * 1024
    later = Footprint(0, (), first=(Moment(token=1),), prefill=(Moment(token=7),))
    assert later.peak_bytes((), [2048]) == 2048
    assert later.peak_bytes((), [4096]) == 7 * 2048


def test_short_prompts_share_a_chunk_and_a_long_one_is_read_alone() -> None:
    footprint = Footprint(0, (), prefill=(Moment(row=10**7, pair=1),))
    assert footprint.peak_bytes((), [4096, 10, 10]) == 2 * 10**7 + 2 * 10 * 10
    assert footprint.peak_bytes((), [700, 150, 100]) == 2 * 10**7 + 2 * 150 * 150


def test_while_short_ones_are_read_a_long_one_may_be_half_read() -> None:
    footprint = Footprint(0, (FULL,), prefill=(Moment(token=10**6),))
    caches = 2 * 10 * (1024 + 5120)
    assert footprint.alone_bytes([1000, 5000]) == caches + 2048 * 10**6


def may_share(lengths: list[int]) -> bool:
    """Whether sequences of these lengths, the longest first, are read together."""
    return is_little_padding(len(lengths) * lengths[0], sum(lengths))


def test_prompts_are_read_together_that_pad_each_other_little() -> None:
    assert may_share([500, 490, 200])
    assert may_share([8000, 7900, 7800])
    assert may_share([120, 1]), "hardly any tokens"
    assert not may_share([8000, 20])


def plainly_read(footprint: Footprint, joining: list[int], prompts: list[int], limit: int) -> int:
    """`reading_bytes`, by its words: for each number of prompts the longest that share a chunk."""
    falling = sorted(prompts, reverse=True)
    held = lambda lengths: sum(footprint.cache_bytes([one]) for one in lengths)  # noqa: E731
    beyond = sorted(held([j]) - held([p]) for j, p in zip(joining, prompts, strict=True))
    found = []
    for rows in range(1, 1 + min(PREFILL_ROWS, len(falling))):
        runs = [falling[n : n + rows] for n in range(len(falling) - rows + 1)]
        run = next((run for run in runs if may_share(run)), None)
        if run is None:
            break
        chunk = footprint._chunk_afresh(rows, run[0], limit)
        found.append(chunk - held(run) - sum(beyond[:rows]))
    return max(found, default=0)


def plainly_alone(footprint: Footprint, prompts: list[int], limit: int) -> int:
    """`alone_bytes`, by its words: with the longest of the others half read."""
    falling, found = sorted(prompts, reverse=True), []
    for rows in range(1, 1 + min(PREFILL_ROWS, len(falling))):
        runs = [falling[n : n + rows] for n in range(len(falling) - rows + 1)]
        run = next((run for run in runs if may_share(run)), None)
        if run is None:
            break
        others = list(falling)
        for one in run:
            others.remove(one)
        half = footprint.cache_bytes([max(others, default=0)])
        found.append(footprint._chunk_afresh(rows, run[0], limit) + half)
    return max(found, default=0)


LAYERED = Footprint(
    1000,
    (FULL, LayerGroup(3, token_bytes=7, window=300, constant_bytes=11)),
    first=(Moment(row=100, token=5, pair=1),),
    prefill=(Moment(token=9, key=2, window_pair=3),),
    start=(Moment(key=4),),
)
"""The same in all draws: what it remembers of the others must not show."""


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 2000)), max_size=12))
def test_sums_are_what_their_words_say_whatever_was_asked_before(
    load: list[tuple[int, int]],
) -> None:
    prompts = [prompt for prompt, _ in load]
    joining = [prompt + answer for prompt, answer in load]
    beside, alone = chunk_tokens(1, decoding=True), chunk_tokens(1, decoding=False)
    wanted = plainly_read(LAYERED, joining, prompts, beside)
    assert LAYERED.reading_bytes(joining, prompts) == wanted
    assert LAYERED.alone_bytes(prompts) == plainly_alone(LAYERED, prompts, alone)


def test_a_long_one_that_pads_too_much_is_half_read_while_short_ones_are() -> None:
    footprint = Footprint(0, (FULL,), prefill=(Moment(row=10**7),))
    assert footprint.alone_bytes([4096, 10, 10]) == 2 * 10**7 + 2 * 10 * (2 * 256 + 4096)
    assert footprint.reading_bytes([4096, 10, 10], [4096, 10, 10]) == 2 * 10**7


def test_what_was_worked_out_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    footprint = Footprint(0, (FULL,), prefill=(Moment(token=1),))
    loads = [700, 650]
    asked = footprint.reading_bytes(loads, loads), footprint.alone_bytes(loads)
    monkeypatch.setattr(Moment, "bytes_of", None)
    assert (footprint.reading_bytes(loads, loads), footprint.alone_bytes(loads)) == asked


def test_only_so_many_prompts_are_read_at_a_time() -> None:
    footprint = Footprint(0, (), prefill=(Moment(token=1),))
    assert footprint.peak_bytes((), [100] * 20) == 8 * 100


def test_an_answer_is_not_read_against_itself() -> None:
    footprint = Footprint(0, (), prefill=(Moment(pair=1),))
    assert footprint.peak_bytes((), [2000], prompts=[100]) == 100 * 100


def test_a_join_copies_the_whole_batch() -> None:
    footprint = Footprint(0, (FULL,), join=(Moment(key=10),))
    alone = footprint.peak_bytes([1000, 1000])
    joined = footprint.peak_bytes([1000], [1000])
    assert alone == 2 * 2 * 1024 * 10
    assert joined == alone + 2 * 1024 * 10


def test_a_long_one_pads_short_ones_by_a_small_part_of_the_weights_at_most() -> None:
    weights = 8 * 20_000
    footprint = Footprint(weights, (FULL,))
    apart = 20 * (8192 + 7 * 256)
    assert footprint.peak_bytes([8000, *[100] * 7]) == weights + apart + 20_000
    assert footprint.peak_bytes([700, 700, 100]) == weights + 20 * 3 * 768, "10 kB of padding"


def test_with_room_for_it_what_is_padded_is_what_costs_less_than_a_pass() -> None:
    footprint = Footprint(PASS_BYTES, (FULL,))
    lengths = [8000, *[100] * 20]
    padded = 20 * 21 * 8192
    assert padded < 2 * PASS_BYTES
    assert footprint.grouped_bytes(lengths, room=UNBOUNDED) == padded
    apart = 20 * (8192 + 20 * 256)
    assert footprint.grouped_bytes(lengths, room=padded - 1) == apart
    assert footprint.grouped_bytes(lengths) == apart + PASS_BYTES // 8


def test_a_sequence_has_a_value_that_changes_when_its_caches_grow() -> None:
    footprint = Footprint(0, (FULL,), decode=(Moment(key=3),), join=(Moment(key=5),))
    assert footprint.row_bytes(1) == footprint.row_bytes(256) == 20 * 256 + 5 * 256
    assert footprint.row_bytes(257) == 2 * footprint.row_bytes(1)


def test_a_window_bounds_what_is_copied_where_all_layers_have_one() -> None:
    footprint = Footprint(0, (WINDOW,), decode=(Moment(key=10),))
    assert footprint.peak_bytes([100_000]) == 3 * 300 * 10 + 300 * 10


def test_a_window_bounds_the_scores_of_its_layers() -> None:
    footprint = Footprint(0, (WINDOW, FULL), prefill=(Moment(window_pair=1),))
    chunk = 2048 * (300 - 1 + 2048)
    caches = 3 * (300 + 2047) * 10 + 2 * 4096 * 10
    assert footprint.peak_bytes((), [4096]) == caches + chunk


def test_blocks_count_by_the_largest_and_the_last() -> None:
    moment = Moment(row=1000, block=256)
    assert moment.bytes_of(1, 512, 512) == 1000
    assert moment.bytes_of(1, 128, 128) == 250
    assert moment.bytes_of(1, 384, 384) == 500 + 125


@pytest.mark.parametrize("budget", [5000, 100_000, 10_000_000])
def test_the_longest_is_the_last_that_fits(budget: int) -> None:
    footprint = Footprint(1000, (FULL,), prefill=(Moment(token=3, pair=1),))
    longest = footprint.longest(budget)
    assert footprint.peak_bytes((), [longest + 1]) > budget
    assert longest == 0 or footprint.peak_bytes((), [longest]) <= budget


def test_longer_never_takes_less() -> None:
    footprint = Footprint(
        0, (FULL, WINDOW), prefill=(Moment(token=3, pair=1, window_pair=1),), join=(Moment(key=9),)
    )
    for running in ((), (700,), (700, 4000)):
        peaks = [footprint.peak_bytes(running, [n]) for n in range(1, 9000, 37)]
        assert peaks == sorted(peaks)


def test_it_travels_in_a_message() -> None:
    footprint = Footprint(1, (FULL, WINDOW, STATE), prefill=(Moment(token=3),), join=(Moment(),))
    ready = Ready(True, 1, 1, 1.0, 1, False, False, footprint)
    told = decode_up(encode(ready)[4:])
    assert isinstance(told, Ready)
    assert told.footprint == footprint
