"""How fast answers go on in company: fitted to a log, and kept to."""

from __future__ import annotations

import random

import pytest

from mlxd.simulate.traffic.pace import CONSTANT, Batch, Step, paces_of
from mlxd.telemetry.traffic import Request
from tests.support.traffic import served


def batched(step: Step, count: int, seed: int = 1) -> list[Request]:
    """Answers that begin at random, as an engine with such steps would give them."""
    rng = random.Random(seed)
    batch = Batch(step)
    starts = sorted((rng.uniform(0, count * 0.4), rng.randrange(10, 60)) for _ in range(count))
    found: list[Request] = []
    begun: dict[int, tuple[float, int]] = {}

    def end_before(moment: float) -> None:
        while (at := batch.next()) is not None and at <= moment:
            one = batch.first()
            assert isinstance(one, int)
            batch.leave(one, at)
            start, tokens = begun[one]
            found.append(
                served(start, ttft=0.0, held=at - start, lasted=at - start, completion=tokens)
            )

    for number, (start, tokens) in enumerate(starts):
        end_before(start)
        begun[number] = (start, tokens)
        batch.enter(number, tokens, 1, start)
    end_before(1e9)
    return found


def test_a_slope_is_found_in_answers_that_met_more_or_less_company() -> None:
    fitted = paces_of(batched(Step(0.02, 0.01), 400)).step("tiny")
    assert fitted.base == pytest.approx(0.02, rel=0.15)
    assert fitted.slope == pytest.approx(0.01, rel=0.15)


def test_with_the_right_slope_an_answers_work_is_its_tokens() -> None:
    requests = batched(Step(0.02, 0.01), 400)
    paces = paces_of(requests)
    step = paces.step("tiny")
    for index, one in enumerate(requests):
        tokens = paces.work[index] * step.seconds(1) / Step(0.02, 0.01).seconds(1)
        assert tokens == pytest.approx(one.completion, rel=0.2)


@pytest.mark.parametrize(
    "requests",
    [
        batched(Step(0.05, 0.0), 400),  # company costs nothing
        batched(Step(0.02, 0.01), 15),  # too few
        [served(10.0 * n) for n in range(50)],  # never in company
        [served(10.0 * n, completion=5) for n in range(50)],  # too short
        [served(float(n), want="embedding", ttft=None) for n in range(50)],
    ],
)
def test_without_a_slope_that_shows_an_answer_takes_what_it_took(requests: list[Request]) -> None:
    paces = paces_of(requests)
    step = paces.step("tiny")
    assert step.slope == pytest.approx(0.0, abs=1e-4)
    for index, work in paces.work.items():
        one = requests[index]
        took = one.held - (one.ttft or 0.0)
        assert work * step.seconds(1) == pytest.approx(took, rel=0.02)


def test_more_company_that_seems_to_help_is_chance() -> None:
    alone = [served(100.0 * n, held=10.5, completion=20) for n in range(30)]
    together = [served(9000.0 + n // 3 * 100, held=2.5, completion=20) for n in range(30)]
    assert paces_of([*alone, *together]).step("tiny") == CONSTANT


def test_company_makes_an_answer_slower_while_it_is_there() -> None:
    batch = Batch(Step(1.0, 1.0))
    batch.enter("a", 10, 1, 0.0)
    assert batch.next() == pytest.approx(20.0)
    batch.enter("b", 2, 2, 8.0)  # of two choices: a step takes 4 s now
    assert batch.next() == pytest.approx(16.0)
    assert batch.first() == "b"
    batch.leave("b", 16.0)
    assert batch.next() == pytest.approx(16.0 + 4 * 2)
    batch.leave("a", 20.0)
    batch.leave("a", 20.0)
    assert batch.next() is None


def test_a_version_says_that_what_was_next_may_not_be() -> None:
    batch = Batch(CONSTANT)
    batch.enter("a", 10, 1, 0.0)
    version = batch.version
    batch.leave("nobody", 1.0)
    assert batch.version == version
    batch.enter("b", 1, 1, 1.0)
    assert batch.version != version
