"""The reader behind every field."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.dialects.fields import Fields, FoldedFields

NOT_FINITE = [
    *(True, False, "1", [], {}, float("nan"), float("inf")),
    pytest.param(10**400, id="400 digits"),
]


def read(**values: Any) -> Fields:
    return Fields(values, lambda path, expected, _found: f"{path}: {expected}")


def test_null_is_absent_for_every_reader() -> None:
    fields = read(x=None)
    readers = (fields.text, fields.flag, fields.number, fields.integer, fields.array)
    assert [reader("x") for reader in readers] == [None] * 5
    assert (fields.mapping("x"), fields.fields("x")) == (None, None)
    assert (fields.texts("x"), list(fields.each("x"))) == ((), [])


@pytest.mark.parametrize("value", NOT_FINITE)
def test_only_a_finite_number_is_one(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^x: number$"):
        read(x=value).number("x")


@pytest.mark.parametrize("value", [True, "1", [], {}, 1.5, float("nan"), float("inf")])
def test_only_a_whole_number_is_an_integer(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^x: integer$"):
        read(x=value).integer("x")


def test_integers_may_come_as_floats() -> None:
    assert read(x=3.0).integer("x") == 3
    assert type(read(x=3.0).integer("x")) is int
    assert read(x=3.9).integer("x", truncate=True) == 3
    assert read(x=-3.9).integer("x", truncate=True) == -3


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1e30])
def test_an_integer_fits_in_64_bits(value: float) -> None:
    with pytest.raises(InvalidRequest, match="x must fit in 64 bits"):
        read(x=value).integer("x", truncate=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1, "x must be at least 0"),
        (2**63, "x must fit in 64 bits"),
        (1e30, "x must fit in 64 bits"),
    ],
)
def test_a_refusal_says_which_end_of_a_range_was_passed(value: float, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{words}$"):
        read(x=value).integer("x", low=0)


def test_a_refusal_names_the_whole_path() -> None:
    fields = read(messages=[{}, {"content": {"text": 5}}])
    inner = list(fields.each("messages"))[1].fields("content")
    assert inner is not None
    with pytest.raises(InvalidRequest, match=r"^messages\[1\]\.content\.text: string$") as caught:
        inner.text("text")
    assert caught.value.param == "messages[1].content.text"


def test_folded_names_match_in_any_case_and_the_exact_one_wins() -> None:
    fields = FoldedFields({"Model": "a", "PROMPT": "b", "prompt": "c"}, lambda *_: "")
    assert (fields.text("model"), fields.text("prompt")) == ("a", "c")
    assert read(Model="a").text("model") is None
