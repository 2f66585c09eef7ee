"""Durations, sizes and ratios: numbers that remember how they were written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.policy.schema import Limits, Supervision
from mlxd.policy.strict_yaml import parse
from mlxd.policy.units import (
    Delay,
    Duration,
    KeepFor,
    LongDuration,
    Ratio,
    Share,
    Size,
    got,
    written,
)

SAME_EVERY_TIME = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("300s", 300), ("5m", 300), ("250ms", 0.25), ("1h30m", 5400), ("1.5s", 1.5)),
        ("1d2h3m4s5ms", 93784.005),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert Duration.parse(text) == pytest.approx(seconds)
    assert str(Duration.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "5", "-5s", "+5s", "5 s", "5S", "5sec", "5s5m", "5s5s", "1:30", "1e3s", ".5s"),
        *("٣s", "5s\n", "inf", "nan", "0s", "never", "367d", "9" * 400 + "s"),
    ],
)
def test_what_is_no_duration_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a duration above zero such as 300s"):
        Duration.parse(text)


@pytest.mark.parametrize("value", [5, 5.0, True, None, [], {}, float("nan")])
def test_a_bare_value_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse(value)


def test_a_bare_number_is_told_which_unit_to_write() -> None:
    with pytest.raises(ValueError, match=r"got 300: write the unit, for instance 300s or 300ms$"):
        Duration.parse(300)
    with pytest.raises(ValueError, match=r'got "300": write the unit: ms, s, m, h or d$'):
        Duration.parse("300")


@pytest.mark.parametrize("text", ["999ms", "0.5s", "1ms", "0s"])
def test_what_is_to_be_long_is_a_second_at_least(text: str) -> None:
    assert LongDuration.parse("1s") == 1.0
    assert LongDuration.parse("1000ms") == 1.0
    with pytest.raises(ValueError, match="at least 1s"):
        LongDuration.parse(text)


def test_a_delay_may_be_zero_and_a_ttl_for_ever() -> None:
    assert Delay.parse("0s") == 0.0
    assert KeepFor.parse("0s") == 0.0
    assert KeepFor.parse("never") == math.inf
    assert str(KeepFor.parse("never")) == "never"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("1B", 1), ("16KiB", 16384), ("8MiB", 8 << 20), ("1GB", 10**9), ("1.5GiB", 3 << 29)),
        *(("2kB", 2000), ("2KB", 2000), ("1TiB", 1 << 40)),
    ],
)
def test_sizes_are_bytes(text: str, count: int) -> None:
    assert Size.parse(text) == count
    assert str(Size.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "8M",
        "8mib",
        "8 MiB",
        "-8MiB",
        "0B",
        "0.1B",
        "9" * 30 + "TiB",
        "8MiBs",
        "9" * 400 + "MiB",
    ],
)
def test_what_is_no_size_is_refused_with_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a size above zero such as 16KiB"):
        Size.parse(text)


@pytest.mark.parametrize(
    ("value", "fraction"), [("85%", 0.85), (0.85, 0.85), (1, 1), ("100%", 1), ("0.5%", 0.005)]
)
def test_ratios_are_fractions(value: object, fraction: float) -> None:
    assert Ratio.parse(value) == pytest.approx(fraction)
    assert str(Ratio.parse(value)) == str(value)


@pytest.mark.parametrize(
    "value",
    [0, 0.0, -0.5, 1.1, 85, "85", "101%", "0%", "-5%", True, None, float("nan"), float("inf")],
)
def test_what_is_no_ratio_is_refused_with_words(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a ratio above zero such as 85%"):
        Ratio.parse(value)


@pytest.mark.parametrize(("value", "fraction"), [("0%", 0), (0, 0), ("20%", 0.2), (0.2, 0.2)])
def test_a_share_may_be_nothing(value: object, fraction: float) -> None:
    assert Share.parse(value) == pytest.approx(fraction)
    assert str(Share.parse(value)) == str(value)


@pytest.mark.parametrize("value", [-0.1, 1.1, "101%", "-5%", "20", True, None, float("nan")])
def test_what_is_no_share_is_refused_with_words(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a ratio such as 0%"):
        Share.parse(value)


def test_a_section_is_written_with_the_names_of_the_file() -> None:
    assert written(Supervision().quarantine) == "{kills: 2, for: 1h}"


def test_arithmetic_gives_plain_numbers() -> None:
    assert type(Duration.parse("5m") + 1) is float
    assert type(Size.parse("1KiB") * 2) is int
    assert f"{Duration.parse('5m'):.1f}" == "300.0"


@SAME_EVERY_TIME
@given(st.floats(min_value=0.001, max_value=86400))
def test_a_duration_in_milliseconds_is_exact_enough(seconds: float) -> None:
    assert Duration.parse(f"{seconds * 1000:.6f}ms") == pytest.approx(seconds, rel=1e-6)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@SAME_EVERY_TIME
@given(_VALUES)
def test_what_is_written_is_read_back_as_yaml(value: object) -> None:
    document = parse(f"key: {written(value)}\n".encode("utf-8", "replace"))
    assert document.problems == []
    assert document.data == {"key": value}


def test_written_reads_like_the_files() -> None:
    assert written({"*.local": None, "on": True, "n": 5}) == '{"*.local": null, on: true, n: 5}'
    assert written(("a b", "5", "true", "x: y")) == '[a b, "5", "true", "x: y"]'
    assert written(Limits().rate_limit[0].window) == "60s"


def test_a_refused_value_is_quoted_in_short() -> None:
    assert got("x" * 1000) == '"' + "x" * 57 + '..."'
    assert got(10**1000) == "1" + "0" * 56 + "..."
    assert (got(None), got({}), got([]), got([1]), got(7), got(False)) == (
        *("nothing", "a mapping", "an empty list", "a list", "7", "false"),
    )


@pytest.mark.parametrize("text", ["1m" + "i" * 3000, "1" * 3000 + "S", 10**3000, "1" * 3000])
def test_a_refusal_of_megabytes_is_of_some_words(text: object) -> None:
    with pytest.raises(ValueError, match=r"\.\.\.") as refused:
        Duration.parse(text)
    assert len(str(refused.value)) < 300
