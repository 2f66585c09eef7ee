"""An error says all that it knows, behind its message."""

from __future__ import annotations

from copy import copy

import pytest

from mlxd.core.errors import (
    WRONG,
    InsufficientMemory,
    InvalidRequest,
    MlxdError,
    ModelNotFound,
    Overloaded,
    PolicyLine,
)

LINE = PolicyLine("limits.choices", "3", "limits.yaml:3")


def test_a_message_alone_stays_as_it_is() -> None:
    assert Overloaded("A sentence.").explained() == "A sentence."


def test_policy_and_what_would_pass_come_behind_it() -> None:
    error = Overloaded("too many.", policy=LINE, would_pass="at most 3")
    assert error.explained() == (
        "too many. Policy: limits.choices: 3 (limits.yaml:3). Would pass: at most 3"
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("4 of 3", "4 of 3"),
        ("4 of them", "4 of them. Numbers: allowed 3"),
        ("14 of 33", "14 of 33. Numbers: asked 4, allowed 3"),
    ],
)
def test_numbers_are_told_that_the_message_does_not_say(message: str, told: str) -> None:
    assert Overloaded(message, numbers={"asked": 4, "allowed": 3}).explained() == told


def test_whatever_is_an_invalid_request_is_wrong_in_itself() -> None:
    assert {InvalidRequest, *InvalidRequest.__subclasses__()} < set(WRONG)


def test_fractions_are_short() -> None:
    error = Overloaded("late", numbers={"elapsed_seconds": 3.14159})
    assert error.explained() == "late. Numbers: elapsed_seconds 3.14"
    for seconds, said in ((3600.0, "3600"), (999.9, "1000"), (86400.4, "86400"), (99.96, "100")):
        error = Overloaded("late", numbers={"window_seconds": seconds})
        assert error.explained() == f"late. Numbers: window_seconds {said}"
    error = Overloaded("Max 1 per 3600 seconds", numbers={"window_seconds": 3600.0})
    assert error.explained() == "Max 1 per 3600 seconds", "it says so"


def test_names_among_them_are_for_programs() -> None:
    error = Overloaded("full", numbers={"rule": "concurrency:m", "running": 2})
    assert error.explained() == "full. Numbers: running 2"


def test_what_was_compared_of_memory_is_among_the_numbers() -> None:
    full = InsufficientMemory("no room", needed_bytes=9, available_bytes=4, numbers={"models": 1})
    assert full.numbers == {"needed_bytes": 9, "available_bytes": 4, "models": 1}
    assert InsufficientMemory("no room").numbers == {}


def test_a_copy_says_the_same() -> None:
    error: MlxdError = Overloaded("too many", policy=LINE, numbers={"a": 1}, would_pass="less")
    assert copy(error).explained() == error.explained()


def test_a_name_of_megabytes_is_not_repeated() -> None:
    error = ModelNotFound("x" * 2**20, "; did you mean y?")
    assert error.message == f"model '{'x' * 350}...' not found; did you mean y?"
    assert ModelNotFound("y" * 350).message == f"model '{'y' * 350}' not found"
