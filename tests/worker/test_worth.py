"""How many tokens are drafted: pure arithmetic."""

from __future__ import annotations

import pytest

from mlxd.worker.worth import DEPTHS, FIRST, MOST, Chance, Worth, expected


def taught(draft: float, check: float, plain: float = 1.0) -> Worth:
    """One that has seen steps: so long for a draft, so long for each further token to check."""
    worth = Worth()
    for depth in DEPTHS:
        for _ in range(3):
            worth.costs.took(depth, plain + depth * (draft + check))
    return worth


def test_nothing_is_drafted_before_it_is_known_what_a_step_takes() -> None:
    worth = Worth()
    assert worth.depth(1.0, MOST) == 0
    worth.costs.took(0, 1.0)
    assert worth.depth(1.0, MOST) == FIRST
    assert worth.depth(1.0, 2) == 2
    assert worth.depth(1.0, 0) == 0


def test_expected_tokens() -> None:
    assert expected(0.0, 5) == 1.0
    assert expected(1.0, 5) == 6.0
    assert expected(0.5, 2) == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("draft", "check", "chance", "least", "most"),
    [
        (0.1, 0.0, 1.0, MOST, MOST),
        (0.1, 0.0, 0.8, 4, 8),
        (0.1, 0.0, 0.05, 0, 0),
        (0.1, 1.0, 1.0, 0, 0),
        (0.3, 0.1, 0.4, 0, 0),
    ],
)
def test_the_better_the_drafts_and_the_cheaper_the_more(
    draft: float, check: float, chance: float, least: int, most: int
) -> None:
    assert least <= taught(draft, check).depth(chance, MOST) <= most


def test_a_step_that_was_not_measured_is_on_the_line_of_its_neighbours() -> None:
    worth = Worth()
    worth.costs.took(0, 1.0)
    worth.costs.took(4, 1.4)
    assert worth.costs.of(2) == pytest.approx(1.2)
    assert worth.costs.of(8) == pytest.approx(1.8)
    worth.costs.took(8, 1.0)
    assert worth.costs.of(16) == pytest.approx(1.0)


def test_one_slow_step_is_not_believed() -> None:
    worth = Worth()
    worth.costs.took(3, 9.0)  # it has compiled something
    worth.costs.took(3, 1.0)
    assert worth.costs.of(3) == 1.0
    worth.costs.took(3, 1000.0)
    assert worth.costs.of(3) < 2.0


def test_a_chance_follows_what_comes() -> None:
    chance = Chance()
    for _ in range(40):
        chance.saw(4, 4)
    assert chance.value > 0.95
    for _ in range(40):
        chance.saw(4, 0)
    assert chance.value < 0.15


def test_a_new_sequence_hopes_for_what_the_others_had() -> None:
    worth = Worth()
    first = worth.chance()
    for _ in range(400):
        worth.saw(worth.chance(), 4, 0)
    assert worth.chance().value < first.value / 2
