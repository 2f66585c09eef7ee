"""The ledger: who is admitted, who waits and what is said, without an engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlxd.core.footprint import PADDING_PART, Footprint, LayerGroup
from mlxd.core.grouping import UNBOUNDED
from mlxd.ipc.messages import Budget, Need, Refused
from mlxd.worker.budget import (
    ANSWER_SECONDS,
    GRANT_SECONDS,
    GROWTH_MARGIN,
    Ledger,
    Verdict,
)
from mlxd.worker.claim import LEAST_GROWTH, Claim
from mlxd.worker.worth import MOST
from tests.support.examples import examples

KIB = 1024
WEIGHTS = 100 * KIB
PLAIN = Footprint(WEIGHTS, (LayerGroup(1, token_bytes=4),))
"""A sequence takes a KiB for each 256 tokens, and nothing else."""


def budget(kib: int, *, most: int = 0, answers: int = 0) -> Budget:
    """Of so many KiB beside the weights."""
    return Budget(WEIGHTS + kib * KIB, WEIGHTS + most * KIB if most else 0, 0, answers=answers)


def claim(
    id: int, prompt: int, *, max_tokens: int = 256, expected: int = 256, until: float = 100.0
) -> Claim:
    return Claim(id, prompt, max_tokens, expected, until, patient=until > 0)


def ledger(kib: int, *claims: Claim, most: int = 0, rows: int = 32) -> Ledger:
    made = Ledger(PLAIN, rows, budget(kib, most=most))
    for one in claims:
        made.ask(one)
    return made


def needs(verdict: Verdict) -> list[tuple[int, int]]:
    """(id, KiB beside the weights)"""
    return [(m.id, (m.bytes - WEIGHTS) // KIB) for m in verdict.say if isinstance(m, Need)]


def refusals(verdict: Verdict) -> list[Refused]:
    return [m for m in verdict.say if isinstance(m, Refused)]


def begin(ledger: Ledger, *ids: int) -> None:
    """They are read, and give their first token."""
    ledger.started(ids)
    ledger.took(list(ids))


def test_what_fits_is_admitted_at_once():
    verdict = ledger(8, claim(1, 256), claim(2, 256), claim(3, 256), claim(4, 256)).decide(0)
    assert verdict.admit == [1, 2, 3, 4]
    assert verdict.say == []


def test_without_a_limit_everything_is_admitted():
    made = Ledger(PLAIN, 32)
    made.ask(claim(1, 10**7))
    assert made.decide(0).admit == [1]
    assert made.allowance == 0


def test_a_batch_is_counted_as_padded_to_its_longest():
    made = ledger(8, claim(1, 256), claim(2, 1280))
    verdict = made.decide(0)
    assert verdict.admit == [1], "two rows of 6 KiB each do not fit, though 2 + 6 would"
    assert needs(verdict) == [(2, 12)], "so little padding is always allowed"


def test_a_long_one_and_short_ones_fit_as_they_are_apart():
    long, short = claim(1, 7936), [claim(n, 256) for n in range(2, 9)]
    made = Ledger(PLAIN, 32, Budget(WEIGHTS + 46 * KIB + WEIGHTS // PADDING_PART, 0, 0))
    for one in (long, *short):
        made.ask(one)
    assert made.decide(0).admit == list(range(1, 9)), "padded they would take 256 KiB"
    made.ask(claim(9, 1))
    assert made.decide(0).admit == []


def test_those_that_decode_have_room_for_padding_where_the_budget_leaves_some():
    made = ledger(200, claim(1, 1024), claim(2, 256))
    made.decide(0)
    assert made.rows_room == 200 * KIB
    made.set_budget(budget(6))
    made.decide(0)
    assert made.rows_room == made.allowance - WEIGHTS == 10 * KIB, "what runs keeps what it has"


def test_what_is_read_beside_those_that_decode_is_no_room_for_them():
    made = Ledger(WORKING, 4, budget(9000))
    made.ask(claim(1, 1024))
    made.decide(0)
    begin(made, 1)
    made.ask(claim(2, 2000))
    made.decide(0)
    computed = 1024 * (3 + 2000)
    answer = WORKING.cache_bytes([2256]) - WORKING.cache_bytes([2000])
    assert 0 <= made.rows_room - (9000 * KIB - computed) <= answer, "it has no answer meanwhile"
    begin(made, 2)
    made.decide(0)
    assert made.rows_room == 9000 * KIB
    made.ask(replace(claim(3, 1280, max_tokens=0), apart=True))
    made.decide(0)
    assert made.rows_room < 9000 * KIB - WORKING.cache_bytes([1280])


def test_without_a_limit_there_is_room_for_any_padding():
    made = Ledger(PLAIN, 32)
    assert made.rows_room == UNBOUNDED


def test_what_is_kept_of_prompts_is_allowed_beside_the_budget_up_to_its_own():
    kept = [3 * KIB]
    made = Ledger(PLAIN, 32, Budget(WEIGHTS + 8 * KIB, 0, 0, prefix_bytes=5 * KIB), lambda: kept[0])
    assert made.allowance == WEIGHTS + 11 * KIB
    kept[0] = 9 * KIB
    assert made.allowance == WEIGHTS + 13 * KIB
    made.set_budget(budget(8))
    assert made.allowance == WEIGHTS + 8 * KIB
    made.set_budget(Budget(0, 0, 0, prefix_bytes=5))
    assert made.allowance == 0


def test_more_is_asked_for_once_and_what_is_granted_is_used():
    made = ledger(4, claim(1, 1280))
    assert needs(made.decide(0)) == [(1, 6)]
    assert made.decide(1) == Verdict(), "the answer is awaited"
    made.set_budget(budget(6, answers=1))
    assert made.decide(2).admit == [1]


def test_what_is_denied_waits_for_the_others_to_leave():
    made = ledger(8, claim(1, 1280), claim(2, 1280))
    assert made.decide(0).admit == [1]
    made.set_budget(budget(8, answers=2))
    assert made.decide(1) == Verdict()
    made.left(1)
    assert made.decide(2).admit == [2]


def test_less_that_will_do_is_asked_for_again():
    made = ledger(4, claim(1, 256), claim(2, 1280))
    assert needs(made.decide(0)) == [(2, 12)]
    made.set_budget(budget(4, answers=2))
    assert made.decide(1) == Verdict()
    made.left(1)
    assert needs(made.decide(2)) == [(2, 6)]


def test_what_could_not_be_had_when_the_budget_was_set_is_asked_for():
    made = ledger(8, claim(1, 1280), claim(2, 1280), most=10)
    verdict = made.decide(0)
    assert (verdict.admit, needs(verdict)) == ([1], [(2, 12)])
    made.set_budget(budget(12, most=12, answers=2))
    assert made.decide(1).admit == [2]


def test_what_could_not_fit_when_the_budget_was_set_is_admitted_when_granted():
    made = ledger(4, claim(1, 3000), most=8)
    assert needs(made.decide(0)) == [(1, 13)]
    made.set_budget(budget(13, most=20, answers=1))
    assert made.decide(1).admit == [1]


def test_a_denied_request_is_refused_when_nothing_runs_that_could_leave():
    made = ledger(4, claim(1, 1280))
    made.decide(0)
    made.set_budget(budget(4, answers=1))
    (refused,) = refusals(made.decide(1))
    assert refused.code == "insufficient_memory"
    assert (refused.needed_bytes, refused.available_bytes) == (WEIGHTS + 6 * KIB, WEIGHTS + 4 * KIB)
    assert "106 KiB" in refused.message
    assert "104 KiB" in refused.message
    assert not made.waits


def test_one_that_may_not_wait_is_refused_once_its_need_is_denied():
    made = ledger(4, claim(1, 256), claim(2, 1280, until=0))
    verdict = made.decide(0)
    assert needs(verdict) == [(2, 12)]
    assert not refusals(verdict), "more may be granted"
    made.set_budget(budget(4, answers=2))
    (refused,) = refusals(made.decide(0))
    assert refused.id == 2
    assert refused.policy_key == "memory.reserve.when_full"


def test_one_that_may_not_wait_behind_another_falls_with_its_need():
    made = ledger(4, claim(1, 256), claim(2, 1280), claim(3, 256, until=0))
    assert not refusals(made.decide(0))
    made.set_budget(budget(4, answers=2))
    assert [m.id for m in refusals(made.decide(0))] == [3]


def test_an_answer_that_never_comes_ends_with_the_wait():
    made = ledger(4, claim(1, 1280, until=50), claim(2, 1280, until=0))
    made.decide(0)
    assert made.decide(49) == Verdict()
    assert [m.id for m in refusals(made.decide(50))] == [1]
    assert not refusals(made.decide(50 + ANSWER_SECONDS - 1))
    assert [m.id for m in refusals(made.decide(50 + ANSWER_SECONDS))] == [2]


def test_a_wait_ends_at_its_time():
    made = ledger(8, claim(1, 1280), claim(2, 1280, until=50))
    made.decide(0)
    made.set_budget(budget(8, answers=2))
    assert made.decide(49) == Verdict()
    (refused,) = refusals(made.decide(50))
    assert refused.policy_key == "timeouts.generation"
    assert "beside what runs" in refused.message


def test_what_fits_into_no_budget_is_told_what_would():
    made = ledger(4, claim(1, 3000), most=8)
    assert not refusals(made.decide(0)), "most may have risen"
    made.set_budget(budget(4, most=8, answers=1))
    (refused,) = refusals(made.decide(0))
    assert refused.code == "context_exceeded"
    assert "prompt and answer of 2048 tokens together would fit" in refused.message
    assert refused.available_bytes == WEIGHTS + 8 * KIB
    assert refused.numbers == {"prompt_tokens": 3000, "fitting_tokens": 2048}


def test_nobody_overtakes_the_first_who_waits():
    made = ledger(8, claim(1, 768), claim(2, 1280), claim(3, 1))
    assert made.decide(0).admit == [1]
    made.set_budget(budget(8, answers=2))
    assert made.decide(1) == Verdict(), "the third would fit, and never let the second in"
    made.left(1)
    assert made.decide(2).admit == [2]


def test_a_withdrawn_request_lets_the_next_one_in():
    made = ledger(8, claim(1, 768), claim(2, 1280), claim(3, 1))
    made.decide(0)
    assert made.withdraw(2)
    assert made.decide(1).admit == [3]
    assert not made.withdraw(2)
    assert not made.withdraw(3), "it does not wait any more"


def decode(ledger: Ledger, id: int, tokens: int) -> int:
    """Tokens until it must end; `tokens` if it need not."""
    for n in range(1, tokens + 1):
        ledger.decide(0)
        if id in ledger.took([id]):
            return n
    return tokens


def test_a_reservation_grows_in_steps_while_there_is_room():
    made = ledger(6, claim(1, 256, max_tokens=5000))
    made.decide(0)
    begin(made, 1)
    assert 1 + decode(made, 1, 5000) == 1280, "up to the budget, and there it ends"


def test_what_was_granted_and_another_grew_into_is_asked_for_again():
    made = ledger(8, claim(1, 1024, max_tokens=5000), claim(2, 768))
    assert needs(made.decide(0)) == [(2, 10)]
    begin(made, 1)
    assert decode(made, 1, 300) == 300
    made.set_budget(budget(10, answers=2))
    assert needs(made.decide(1)) == [(2, 12)]
    made.set_budget(budget(12, answers=2))
    assert made.decide(2).admit == [2]


def test_one_that_reaches_its_last_token_does_not_grow():
    made = ledger(2, claim(1, 256, max_tokens=256))
    made.decide(0)
    begin(made, 1)
    assert decode(made, 1, 255) == 255
    assert made.decide(0) == Verdict()


def test_growth_is_asked_for_before_it_is_needed():
    made = ledger(2, claim(1, 256, max_tokens=5000))
    made.decide(0)
    begin(made, 1)
    said: list[tuple[int, int]] = []
    used = 257
    while not said:
        assert not made.took([1])
        used += 1
        said = needs(made.decide(0))
    assert used == 512 - GROWTH_MARGIN
    assert said == [(1, 3)]
    made.set_budget(budget(3, answers=1))
    made.decide(0)
    assert decode(made, 1, 5000) == 768 - used


def standing() -> Ledger:
    """One token before the end of its reservation, with more asked for at 5."""
    made = ledger(2, claim(1, 256, max_tokens=5000))
    made.decide(0)
    begin(made, 1)
    for _ in range(512 - 257 - 1):
        assert not made.stands_until
        made.decide(5)
        assert not made.took([1])
    return made


def test_at_the_end_of_a_reservation_the_answer_is_awaited_for_a_while():
    made = standing()
    assert made.stands_until == 5 + GRANT_SECONDS
    made.set_budget(budget(3, answers=1))
    made.decide(6)
    assert not made.stands_until
    assert not made.took([1])


def test_the_answer_is_awaited_before_a_step_with_drafts_could_end_the_sequence():
    drafted = replace(PLAIN, draft=(LayerGroup(1, token_bytes=0),))
    made = Ledger(drafted, 32, budget(2, most=8))
    made.ask(claim(1, 256, max_tokens=5000))
    made.decide(0)
    begin(made, 1)
    for _ in range(512 - 257 - MOST - 1):
        assert not made.stands_until
        made.decide(5)
        assert not made.took([1])
    assert made.stands_until == 5 + GRANT_SECONDS


def test_while_nobody_comes_or_goes_nothing_is_computed(monkeypatch):
    asked = []

    def grouped_bytes(self: Footprint, *given: Any, **more: Any) -> int:
        asked.append(given)
        return real(self, *given, **more)

    made, real = ledger(8, claim(1, 256)), Footprint.grouped_bytes
    monkeypatch.setattr(Footprint, "grouped_bytes", grouped_bytes)
    made.decide(0)
    assert len(asked) == 1, "what it would hold is what it holds then"
    begin(made, 1)
    made.decide(0)
    assert made.allowance
    asked.clear()
    for n in range(100):
        made.took([1])
        made.decide(n)
        assert made.allowance
    assert not asked


def test_those_that_leave_together_are_looked_at_once(monkeypatch):
    looks = []

    def peak_bytes(self: Footprint, *given: Any, **more: Any) -> int:
        looks.append(given)
        return real(self, *given, **more)

    made, real = ledger(8, *(claim(n, 256) for n in range(1, 4))), Footprint.peak_bytes
    made.decide(0)
    for n in range(1, 4):
        begin(made, n)
    monkeypatch.setattr(Footprint, "peak_bytes", peak_bytes)
    made.left(1, 2, 3)
    assert len(looks) == 1
    assert made.observed().rows == 3


def test_at_the_end_of_a_reservation_a_denial_is_final():
    made = standing()
    made.set_budget(budget(2, answers=1))
    made.decide(6)
    assert not made.stands_until
    assert made.took([1]) == {1}


def test_what_has_just_grown_does_not_ask_at_once():
    assert GROWTH_MARGIN < LEAST_GROWTH


def test_growth_comes_before_those_who_wait():
    made = ledger(6, claim(1, 256, max_tokens=5000), claim(2, 700))
    made.decide(0)
    made.set_budget(budget(6, answers=2))
    begin(made, 1)
    decode(made, 1, 200)
    assert made.decide(0).admit == []
    made.left(1)
    assert made.decide(0).admit == [2]


def test_a_lowered_budget_ends_nobody_and_stops_growth():
    made = ledger(8, claim(1, 256, max_tokens=5000))
    made.decide(0)
    begin(made, 1)
    made.set_budget(budget(1))
    assert decode(made, 1, 5000) + 1 == 256
    assert made.allowance == WEIGHTS + 2 * KIB


def test_a_budget_below_what_runs_is_protested_once():
    made = ledger(8, claim(1, 256), claim(2, 256))
    made.decide(0)
    made.set_budget(budget(1))
    assert needs(made.decide(0)) == [(2, 4)]
    made.set_budget(budget(1, answers=2))
    assert made.decide(1) == Verdict()


def test_the_largest_batch_is_remembered_as_it_was():
    made = ledger(50, claim(1, 300, max_tokens=1000), claim(2, 10))
    made.decide(0)
    begin(made, 1, 2)
    decode(made, 1, 300)
    made.left(2)
    decode(made, 1, 300)
    made.left(1)
    largest = made.observed()
    assert (largest.rows, largest.longest) == (2, 601)
    assert largest.predicted_bytes == WEIGHTS + 2 * 3 * KIB
    assert made.observed().predicted_bytes == 0


def test_a_prompt_given_up_half_way_teaches_nothing():
    made = ledger(50, claim(1, 300), claim(2, 10))
    made.decide(0)
    begin(made, 1)
    made.started([2])
    made.left(2)
    made.left(1)
    assert made.observed().predicted_bytes == 0


def test_who_grew_last_is_ended_first_else_who_came_last():
    made = ledger(50, claim(1, 256, max_tokens=900), claim(2, 10))
    made.decide(0)
    assert made.victim() == 2
    begin(made, 1, 2)
    decode(made, 1, 250)
    made.decide(0)
    assert made.victim() == 1
    made.left(1)
    assert made.victim() == 2
    made.left(2)
    assert made.victim() is None


def test_who_is_refused_behind_others_is_told_what_there_is_not_room_for():
    """It would fit by itself; nobody overtakes."""
    small = claim(3, 1, max_tokens=1, until=0)
    made = ledger(13, claim(1, 1280), claim(2, 2048, until=50), small)
    assert made.decide(0).admit == [1]
    made.set_budget(budget(13, answers=2))
    (refused,) = refusals(made.decide(0))
    assert refused.id == 3
    assert refused.needed_bytes > refused.available_bytes
    assert "beside what runs and waits before it" in refused.message


def test_one_lane_holds_one_sequence_at_a_time():
    made = ledger(6, claim(1, 256), claim(2, 1280), claim(3, 256), rows=1)
    assert made.decide(0).admit == [1, 2, 3]


@pytest.mark.parametrize("rows", [1, 8])
def test_what_is_read_apart_is_held_beside_whatever_rows_there_are(rows: int) -> None:
    apart = replace(claim(9, 1280, max_tokens=0), apart=True)
    others = [claim(n, 256) for n in range(rows)]
    made = ledger(2 * rows + 4, *others, apart, rows=rows)
    assert made.decide(0).admit == list(range(rows))
    begin(made, *range(rows))
    made.set_budget(budget(2 * rows + 5))
    assert made.decide(0).admit == [9]
    made.started([9])
    assert made.allowance == WEIGHTS + (2 * rows + 5) * KIB
    made.left(9)


def test_what_was_read_apart_is_a_row_like_others_from_then_on() -> None:
    made = ledger(12, claim(1, 256), replace(claim(2, 1280), apart=True), rows=1)
    assert made.decide(0).admit == [1, 2]
    begin(made, 1)
    made.set_budget(budget(4))
    assert made.allowance == WEIGHTS + 7 * KIB
    made.entered(2)
    assert made.allowance == WEIGHTS + 6 * KIB


def test_beyond_the_rows_of_a_batch_nothing_is_held():
    made = ledger(16, *[claim(n, 256) for n in range(12)], rows=8)
    assert made.decide(0).admit == list(range(12))


WORKING = Footprint(
    WEIGHTS, (LayerGroup(2, 8), LayerGroup(1, 4, window=300)), work_bytes=3, score_bytes=1
)
"""It has a window, and computes with something."""


class Life(RuleBasedStateMachine):
    """Whatever comes: nothing is promised beyond the budget, and everybody is told an end."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = budget(40, most=80)
        self.ledger = Ledger(WORKING, 4, self.budget)
        self.now = 0.0
        self.next_id = 1
        self.waiting: dict[int, Claim] = {}
        self.running: dict[int, Claim] = {}
        self.decoding: set[int] = set()
        self.used: dict[int, int] = {}
        self.asked: list[Need] = []
        self.promised: int = 0

    @rule(
        prompt=st.integers(1, 4000), output=st.integers(1, 2000), wait=st.sampled_from([0, 1, 30])
    )
    def ask(self, prompt: int, output: int, wait: float) -> None:
        one = Claim(self.next_id, prompt, output, 256, self.now + wait, patient=wait > 0)
        self.next_id += 1
        self.waiting[one.id] = one
        self.ledger.ask(one)

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 40.0]))
    def decide(self, seconds: float) -> None:
        self.now += seconds
        verdict = self.ledger.decide(self.now)
        for message in verdict.say:
            if isinstance(message, Need):
                assert self.budget.bytes < message.bytes
                self.asked.append(message)
            else:
                assert message.needed_bytes > message.available_bytes
                del self.waiting[message.id]
        for id in verdict.admit:
            assert id == next(iter(self.waiting)), "in order of arrival"
            self.running[id] = self.waiting.pop(id)
            self.used[id] = self.running[id].prompt
        if verdict.admit:
            assert self.ledger.allowance == self.budget.bytes, "it was within the budget"

    @precondition(lambda self: self.asked)
    @rule(granted=st.booleans())
    def answer(self, granted: bool) -> None:
        need = self.asked.pop(0)
        size = max(need.bytes, self.budget.bytes) if granted else self.budget.bytes
        self.budget = Budget(size, self.budget.most, 0, answers=need.id)
        self.ledger.set_budget(self.budget)

    @rule(kib=st.integers(5, 80))
    def change(self, kib: int) -> None:
        self.budget = budget(kib, most=80)
        self.ledger.set_budget(self.budget)

    @precondition(lambda self: self.running)
    @rule(tokens=st.sampled_from([1, 40, 250]))
    def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            ids = list(self.running)
            self.ledger.started([id for id in ids if id not in self.decoding])
            self.decoding.update(ids)
            over = self.ledger.took(ids)
            for id in ids:
                self.used[id] += 1
            self.leave(*(
                id for id in ids if id in over or self.used[id] == self.running[id].longest
            ))  # fmt: skip
            self.decide(0.0)

    @invariant()
    def what_it_remembers_is_as_it_is(self) -> None:
        assert self.ledger._held() == self.ledger._reserved()
        assert self.ledger.rows_room == self.ledger._room_of_rows()

    def leave(self, *ids: int) -> None:
        self.ledger.left(*ids)
        for id in ids:
            del self.running[id]
            self.decoding.discard(id)

    @precondition(lambda self: self.running or self.waiting)
    @rule(pick=st.integers(0, 10))
    def cancel(self, pick: int) -> None:
        known = [*self.running, *self.waiting]
        id = known[pick % len(known)]
        if self.ledger.withdraw(id):
            del self.waiting[id]
        else:
            self.leave(id)

    @invariant()
    def what_runs_is_within_what_was_promised(self) -> None:
        lengths = [self.used[id] for id in self.running]
        kept = sorted(lengths)[-4:]
        if kept:
            room = self.ledger.rows_room
            assert WORKING.peak_bytes(kept, room=room) <= self.ledger.allowance

    @invariant()
    def who_waits_is_known(self) -> None:
        assert self.ledger.waits == bool(self.waiting)

    def teardown(self) -> None:
        """Left alone, all that waits ends."""
        for id in list(self.running):
            self.leave(id)
        for _ in range(len(self.waiting) * 3 + 1):
            self.decide(40.0)
            for id in list(self.running):
                self.leave(id)
        assert not self.waiting
        assert not self.ledger.waits


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=examples(25, 60), stateful_step_count=40, deadline=None)


def test_a_claim_never_reserves_so_little_that_it_could_not_ask_for_more():
    assert claim(1, 10, max_tokens=5000, expected=1).reserved == 266
    assert replace(claim(1, 10, max_tokens=5), expected_output=1).reserved == 15


@pytest.mark.parametrize("expected", [1, 1024, 8192])
def test_a_reservation_grows_by_a_quarter_of_what_is_expected(expected: int):
    assert claim(1, 10, expected=expected).growth == max(256, expected // 4)
