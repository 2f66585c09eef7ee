"""How long chunks are, on machines that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mlxd.ipc.messages import Tuning
from mlxd.worker.pace import AIM, LEAST_AIM, Pace
from mlxd.worker.share import Share
from mlxd.worker.tuning import Tuned

Cost = Callable[[int, int], float]
"""Seconds of a chunk: of its tokens, and the prompt's length behind it."""


def linear(each: float) -> Cost:
    return lambda tokens, length: tokens * each


def attentive(tokens: int, length: int) -> float:
    """As a small model on a CPU: nothing but attention counts in the end."""
    return tokens * (2e-5 + 6.7e-8 * length)


def read(pace: Pace, cost: Cost, length: int, *, most: int = 2048) -> list[tuple[int, float]]:
    """Tokens and seconds of each chunk of one prompt."""
    chunks, done = [], 0
    while done < length:
        tokens = min(length - done, most, pace.tokens(1, done, decoding=False))
        done += tokens
        seconds = cost(tokens, done)
        pace.prefilled(tokens, seconds, beside=False, length=done)
        chunks.append((tokens, seconds))
    return chunks


def test_nothing_is_known_at_first_and_what_is_known_grows_step_by_step():
    pace = Pace()
    assert [tokens for tokens, _ in read(pace, linear(1e-6), 4000)] == [64, 256, 1024, 2048, 608]


def test_on_a_gpu_a_short_prompt_is_read_in_one_piece_from_the_first_on():
    assert Pace(gpu=True).tokens(decoding=False) == 512


class Planning:
    """As on CUDA: what attends is planned anew for each pair of lengths."""

    def __init__(self, *, plan: float = 0.055, start: float = 0.005, each: float = 4e-6) -> None:
        self.plan, self.start, self.each = plan, start, each
        self.seen: set[tuple[int, int]] = set()

    def __call__(self, tokens: int, length: int) -> float:
        new = (tokens, length) not in self.seen
        self.seen.add((tokens, length))
        return self.start + self.each * tokens * (1 + length / 8000) + (self.plan if new else 0.0)


def test_where_chunks_are_planned_a_long_prompt_is_read_in_few():
    chance, cost = random.Random(1), Planning()
    pace = Pace(gpu=True, plans=True)
    for _ in range(30):
        read(pace, cost, chance.randint(10, 400))
    chunks = [read(pace, cost, chance.randint(3500, 3900), most=4096) for _ in range(5)]
    assert all(len(each) <= 6 for each in chunks)
    assert sum(seconds for _, seconds in chunks[-1]) < 0.2
    sizes = {tokens for each in chunks for tokens, _ in each[:-1]}
    assert all(tokens & (tokens - 1) == 0 for tokens in sizes), "what was planned is used again"


def test_where_planning_is_most_of_a_chunk_its_tokens_may_take_as_long():
    """A model that is large for the GPU: a token takes 0.3 ms."""
    cost, pace = Planning(plan=0.06, start=0.03, each=3e-4), Pace(gpu=True, plans=True)
    for tokens in (20, 20, 3000):
        read(pace, cost, tokens)
    chunks = read(pace, cost, 3100)
    assert all(0.1 < seconds < 0.16 for _, seconds in chunks[:-1])


def test_one_chunk_that_was_compiled_is_forgotten_soon():
    cost, pace = Planning(), Pace(gpu=True, plans=True)
    pace.prefilled(512, 9.0, beside=False, length=512)
    read(pace, cost, 3600)
    assert len(read(pace, cost, 3700, most=4096)) <= 8


@pytest.mark.parametrize("stall", [0.1, 0.4])
def test_a_chunk_takes_as_long_as_it_may(stall):
    pace = Pace(Tuned(Tuning(stall_seconds=stall)))
    read(pace, attentive, 7500)
    chunks, aim = read(pace, attentive, 7500)[:-1], AIM * stall
    assert all(0.7 * aim < seconds < 1.15 * aim for tokens, seconds in chunks if tokens < 2048)
    assert len(chunks) < 2.5 / aim


def moody(pace: Pace, chance: random.Random, prompts: int, slowness: float = 1.65) -> list[float]:
    """Seconds of long prompts' chunks beside answers, where a chunk now and then, for a while,
    takes so many times as long.
    """
    seconds, slow = [], False
    for _ in range(prompts):
        done = 0
        while done < 7500:
            slow = slow != (chance.random() < 0.15)
            tokens = min(7500 - done, pace.tokens(1, done, decoding=True, midway=True))
            done += tokens
            took = attentive(tokens, done) * (slowness if slow else 1.0)
            pace.prefilled(tokens, took, beside=True, length=done, midway=True)
            seconds.append(took)
    return seconds


def test_where_chunks_now_and_then_take_longer_they_are_to_take_less():
    pace = Pace()
    moody(pace, chance := random.Random(1), 1)
    seconds = sorted(moody(pace, chance, 10))
    assert seconds[int(0.98 * len(seconds))] <= 0.1
    assert seconds[len(seconds) // 2] > 0.04


def test_where_they_no_longer_do_chunks_are_as_long_as_ever():
    pace = Pace()
    moody(pace, chance := random.Random(1), 3)
    seconds = moody(pace, chance, 4, slowness=1.0)
    assert seconds[-2] == pytest.approx(AIM * 0.1, rel=0.1)


def test_nor_are_they_where_nobody_waits_or_a_prompt_is_short():
    pace = Pace()
    read(pace, attentive, 7500)
    before = pace.tokens(decoding=False), pace.tokens(decoding=True)
    moody(pace, random.Random(1), 3)
    read(pace, attentive, 7500)  # the load is known again
    after = pace.tokens(decoding=False), pace.tokens(decoding=True)
    assert after == pytest.approx(before, rel=0.1)
    assert pace.tokens(decoding=True, midway=True) < 0.8 * before[1]


def test_chunks_may_be_of_no_known_length():
    pace = Pace()
    for _ in range(2):
        pace.prefilled(64, 0.01, beside=False)
    assert pace.tokens(decoding=False) == 256


def test_however_unsteady_a_machine_is_a_chunk_takes_a_part_of_the_target():
    pace = Pace()
    moody(pace, random.Random(1), 6, slowness=5.0)
    assert pace._seconds(decoding=True, midway=True) == pytest.approx(LEAST_AIM * 0.1)


def test_chunks_beyond_all_known_lengths_are_not_late():
    pace = Pace()
    moody(pace, random.Random(1), 1, slowness=1.0)
    assert pace._seconds(decoding=True, midway=True) == pytest.approx(AIM * 0.1)


def test_chunks_that_end_with_a_turn_are_not_late():
    pace = Pace()
    read(pace, attentive, 7500)
    for n in range(200):
        took = 20 * 2e-4 * (1 + n % 4)
        pace.prefilled(20, took, beside=True, length=2000, midway=True)
    assert pace._seconds(decoding=True, midway=True) == pytest.approx(AIM * 0.1)


def test_a_long_prompt_behind_many_short_ones_is_still_known():
    pace = Pace()
    read(pace, attentive, 7500)
    for _ in range(300):
        read(pace, attentive, 40)
    assert max(seconds for _, seconds in read(pace, attentive, 7500)) < 0.13


def test_the_first_long_prompt_is_measured_on_its_way():
    pace = Pace()
    for _ in range(20):
        read(pace, attentive, 200)
    assert all(seconds < 0.15 for _, seconds in read(pace, attentive, 7500)[2:])


def test_noise_is_no_cost_of_length():
    chance = random.Random(1)
    pace = Pace()
    for _ in range(200):
        length = chance.randint(240, 270)
        pace.prefilled(length, length * 1e-4 * chance.uniform(1, 1.6), beside=False, length=length)
    assert pace.tokens(1, 5000, decoding=False) > 400


def test_however_slow_it_is_so_many_tokens_are_read():
    pace = Pace()
    assert [tokens for tokens, _ in read(pace, linear(1.0), 200)] == [64, 32, 32, 32, 32, 8]
    assert pace.tokens(3, decoding=False) == 11
    assert Pace(Tuned(Tuning(min_chunk=100))).tokens(decoding=False) == 100


def test_a_machine_that_gets_slow_is_seen_after_one_chunk():
    pace = Pace()
    read(pace, linear(1e-5), 6000)
    first, second, *others = read(pace, linear(1e-3), 6000)
    assert first[0] == 2048
    assert all(0.04 < seconds < 0.12 for _, seconds in [second, *others[:-1]])


def test_a_machine_that_is_fast_again_is_seen_to_be():
    pace = Pace()
    read(pace, linear(1e-2), 500)
    assert len(read(pace, linear(1e-5), 9000)) <= 18


def test_a_hiccup_is_forgotten_soon():
    pace = Pace()
    read(pace, linear(1e-4), 6000)
    pace.prefilled(400, 3.0, beside=False, length=400)
    chunks = [tokens for tokens, _ in read(pace, linear(1e-4), 8000)]
    assert chunks[8] > 600


def test_beside_answers_a_chunk_leaves_room_for_their_step():
    pace = Pace()
    read(pace, linear(1e-4), 6000)
    assert pace.tokens(decoding=False) == pytest.approx(750, rel=0.02)
    pace.decoded(0.03)
    assert pace.tokens(decoding=True) == pytest.approx(450, rel=0.02)
    pace.decoded(0.3)
    assert pace.tokens(decoding=True) == pytest.approx(375, rel=0.02)


def test_what_a_handful_of_tokens_takes_tells_nothing():
    pace = Pace()
    read(pace, linear(1e-4), 6000)
    before = pace.tokens(decoding=False)
    pace.prefilled(3, 0.05, beside=False, length=3)
    assert pace.tokens(decoding=False) == before


def test_however_small_the_chunks_are_a_machine_that_is_fast_again_is_seen_to_be():
    pace = Pace(Tuned(Tuning(min_chunk=1)))
    read(pace, linear(1e-4), 6000)
    pace.prefilled(512, 60.0, beside=False, length=512)
    assert pace.tokens(decoding=False) < 16
    read(pace, linear(1e-4), 200, most=8)
    assert pace.tokens(decoding=False) > 400


def test_the_stall_target_holds_from_the_next_chunk_on():
    tuned = Tuned()
    pace = Pace(tuned)
    read(pace, linear(1e-4), 6000)
    tuned.now = Tuning(stall_seconds=0.05)
    assert pace.tokens(decoding=False) == pytest.approx(375, rel=0.02)


def test_answers_have_their_share_of_the_time():
    share = Share(Tuned(Tuning(decode_share=0.2)))
    now = read_seconds = 0.0
    for _ in range(100):
        if share.is_due:
            share.decoded()
            share.passed(0.003)
            now += 0.003
        else:
            share.read(0.1, decoding=True)
            now += 0.1
            read_seconds += 0.1
    assert read_seconds / now == pytest.approx(0.8, abs=0.03)


def test_a_token_comes_between_two_chunks_however_long_it_takes():
    share = Share(Tuned())
    turns = ""
    for _ in range(6):
        turns += "d" if share.is_due else "c"
        if turns[-1] == "c":
            share.read(0.01, decoding=True)
        else:
            share.decoded()
            share.passed(1.0)
    assert turns == "cdcdcd"


def test_answers_that_have_just_begun_have_nothing_coming_but_their_first_token():
    share = Share(Tuned())
    share.read(5.0, decoding=False)
    assert share.is_due
    share.decoded()
    assert not share.is_due
