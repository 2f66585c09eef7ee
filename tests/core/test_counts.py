"""Counts in words."""

from __future__ import annotations

import pytest

from mlxd.core.counts import form, plural, some, whole


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0 requests"), (1, "1 request"), (2, "2 requests"), (10**7, "10000000 requests"),
     (1.0, "1 request"), (0.5, "0.5 requests")],
)  # fmt: skip
def test_one_is_told_in_the_singular(amount: float, words: str) -> None:
    assert plural(amount, "request") == words


def test_what_goes_with_it_agrees() -> None:
    assert [form(count, "waits", "wait") for count in range(3)] == ["wait", "waits", "wait"]
    assert plural(1, "entry", "entries") == "1 entry"
    assert plural(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("007", 7), ("999", 999), ("1000", None), ("", None), ("-1", None), ("²", None),
     ("٣", None), (" 1", None)],
)  # fmt: skip
def test_a_count_is_read_of_few_ascii_digits_alone(text: str, count: int | None) -> None:
    assert whole(text, 3) == count


def test_of_many_lines_the_first_are_told_and_how_many_more_there_are() -> None:
    lines = [str(number) for number in range(300)]
    assert some(lines[:10], "{} more") == lines[:10]
    assert some(iter(lines), "{} more") == [*lines[:10], "290 more"]
