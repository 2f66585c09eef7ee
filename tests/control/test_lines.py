"""Classes whose next requests would end at the same virtual time."""

from __future__ import annotations

import itertools

import pytest

from mlxd.control.applicant import Applicant
from mlxd.control.lines import Lines
from mlxd.control.place import Place
from mlxd.core.caller import Caller, Priority
from mlxd.policy.load import load

POLICIES = load()
NUMBERS = itertools.count()


def place(klass: Priority) -> Place:
    applicant = Applicant(Caller("a"), POLICIES, "m", priority=klass)
    return Place(applicant, klass, "a", 1.0, 0.0, 99.0, next(NUMBERS))


def anyone(_: object) -> bool:
    return True


@pytest.mark.parametrize("history", range(7, 60, 7))
def test_of_two_the_higher_goes_first_whatever_was_before(history: int) -> None:
    """Low has weight 1 and medium 3: at the second turn they are even."""
    lines = Lines(POLICIES, lambda _: 1)
    for _ in range(history):
        lines.start(place("medium"), 0.0, waited=False)
    lines.add(place("low"), 0.0)
    for _ in range(3):
        lines.add(place("medium"), 0.0)
    order: list[str] = []
    for _ in range(4):
        found = lines.next(0.0, anyone, anyone, anyone)
        assert found is not None
        order.append(found.klass)
        lines.start(found, 0.0, waited=True)
    assert order == ["medium", "medium", "low", "medium"]
