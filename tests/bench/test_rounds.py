"""The order of what is measured, and what becomes of the figures."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from mlxd.bench.client import BadAnswer, TooLate
from mlxd.bench.contestants import Answers
from mlxd.bench.figures import decode_rate, quantile, spread
from mlxd.bench.prompts import Prompts
from mlxd.bench.rounds import DAEMON, RAW, Load, Rounds, TooLong, figures, measure, plan

LOADS = [Load(1, 20, 1), Load(2, 20, 11)]


class Fake:
    """Takes so many seconds to the first token, and between two; in each round a factor longer."""

    def __init__(self, first: float, gap: float, factors: Sequence[float] = (1.0,) * 9) -> None:
        self.first, self.gap, self.factors = first, gap, factors
        self.asked: list[list[int]] = []
        self.calls = 0

    def run(self, prompts: Sequence[list[int]], tokens: int, within: float) -> Answers:
        assert within > 0
        factor = self.factors[self.calls // len(LOADS)]
        self.calls += 1
        self.asked += prompts
        one = [factor * (self.first + n * self.gap) for n in range(tokens)]
        return Answers([one for _ in prompts], [one[-1] - one[0] for _ in prompts])


class Late(Fake):
    """Is too late with the last load of its nth round."""

    def __init__(self, nth: int) -> None:
        super().__init__(0.1, 0.01, [1.0] * nth + [3.0])
        self.nth = nth

    def run(self, prompts: Sequence[list[int]], tokens: int, within: float) -> Answers:
        if self.calls == (self.nth + 1) * len(LOADS) - 1:
            raise TooLate("too late")
        return super().run(prompts, tokens, within)


def run(count: int = 3, **contestants: Fake) -> Rounds:
    return measure(
        contestants, LOADS, Prompts(512, seed=1), rounds=count, seconds=60, before=lambda _: None
    )


def test_a_plan_reads_prompts_of_several_lengths_and_then_answers() -> None:
    loads = plan((8, 1), 512, 128, 100_000)
    assert [load.prompt for load in loads if load.tokens == 1] == [128, 512, 2048]
    assert [load.streams for load in loads if load.tokens > 1] == [1, 8]
    assert {load.tokens for load in loads} == {1, 128}


def test_no_prompt_is_longer_than_the_context() -> None:
    loads = plan((1,), 512, 128, 1024)
    assert [load.prompt for load in loads if load.tokens == 1] == [128, 512, 1023]
    assert [one.prompt for one in plan((1,), 4, 4, 8) if one.tokens == 1] == [7]


def test_figures_are_medians_and_ratios_are_those_of_each_round() -> None:
    warm_up = 100.0
    mine = Fake(0.2, 0.02, (warm_up, 1.0, 3.0, 1.0))
    theirs = Fake(0.1, 0.01, (warm_up, 1.0, 3.0, 2.0))
    report = run(mlxd=mine, raw=theirs).report()
    (reading,), (answers,) = report["prefill"], report["decode"]
    assert report["rounds"] == 3
    assert reading["prompt"] == 20
    assert reading["tokens_per_second"] == pytest.approx(20 / 0.2)
    assert reading["ratio"]["tokens_per_second"] == pytest.approx(0.5)  # of 0.5, 0.5, 1
    assert answers["streams"] == 2
    assert answers["tokens_per_second"] == pytest.approx(2 * 10 / (10 * 0.02))
    assert answers["gap_p99_ms"] == pytest.approx(20)
    assert answers["raw"]["ttft_p50_ms"] == pytest.approx(200)


def test_who_goes_first_changes_and_no_two_prompts_are_alike() -> None:
    order: list[str] = []
    mine, theirs = Fake(0.1, 0.01), Fake(0.1, 0.01)
    measure(
        {DAEMON: mine, RAW: theirs}, LOADS, Prompts(512), rounds=2, seconds=60,
        before=order.append,
    )  # fmt: skip
    firsts = [words.split(": ")[1].split(",")[0] for words in order[:: 2 * len(LOADS)]]
    assert firsts == [RAW, DAEMON, RAW]
    assert order[0].startswith("warming up: ")
    asked = [tuple(prompt) for one in (mine, theirs) for prompt in one.asked]
    assert len(set(asked)) == len(asked) == 2 * 3 * 3


def test_what_is_too_late_leaves_the_rounds_that_are_whole() -> None:
    report = run(mlxd=Late(2)).report()
    assert report["rounds"] == 1
    assert report["prefill"][0]["tokens_per_second"] == pytest.approx(20 / 0.1)
    assert "raw" not in report["decode"][0]


@pytest.mark.parametrize("nth", [0, 1])
def test_without_a_whole_round_there_are_no_figures(nth: int) -> None:
    with pytest.raises(TooLong, match="not one round was done within 60 s"):
        run(mlxd=Late(nth))


def test_a_time_that_is_over_ends_it_before_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(times)))
    contestant = Fake(0.1, 0.01)
    found = measure(
        {DAEMON: contestant}, LOADS, Prompts(512), rounds=9, seconds=6.5, before=lambda _: None
    )
    assert (found.done, contestant.calls) == (2, 6)


def test_an_answer_that_took_no_time_is_no_rate() -> None:
    with pytest.raises(BadAnswer, match="too short"):
        figures(Load(1, 20, 2), Answers([[0.1]], [0.0]))


def test_gaps_and_first_pieces_are_those_of_all_streams() -> None:
    found = spread([[0.1, 0.2, 0.4], [0.3, 0.4]])
    assert found.ttft_p50_ms == pytest.approx(200)
    assert found.ttft_p99_ms == pytest.approx(300)
    assert found.gap_p50_ms == pytest.approx(100)
    assert found.gap_p99_ms == pytest.approx(200)
    assert spread([[0.1]]).gap_p99_ms == 0


def test_a_rate_is_the_sum_over_streams() -> None:
    assert decode_rate([1.0, 2.0], 11) == pytest.approx(15)
    assert quantile([1, 2, 3, 4], 0.5) == 2


def test_prompts_hold_what_every_vocabulary_has() -> None:
    for vocabulary in (32, 512, 150_000):
        (prompt,) = Prompts(vocabulary).draw(500, 1)
        assert len(prompt) == 500
        assert 0 < min(prompt) <= max(prompt) < vocabulary
