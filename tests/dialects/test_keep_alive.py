"""keep_alive: every form that clients send."""

from __future__ import annotations

import math
import re

import pytest

from mlxd.dialects.fields import Fields
from mlxd.dialects.keep_alive import keep_alive, parse_duration


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (0.0, 0.0),
        (30, 30.0),
        (1.5, 1.5),
        (-1, math.inf),
        (-0.5, math.inf),
        (10**18, math.inf),
        ("0", 0.0),
        ("-0", 0.0),
        ("0s", 0.0),
        ("300ms", 0.3),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("+2s", 2.0),
        ("-1m", math.inf),
        ("-1ns", math.inf),
        ("10µs", 1e-5),
        ("24h0m0s", 86400.0),
        ("9999999999999h", math.inf),
    ],
)
def test_a_form_is_so_many_seconds(given: object, seconds: float | None) -> None:
    found = keep_alive(Fields({"keep_alive": given}, lambda *_: ""))
    assert found == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("s", 'time: invalid duration "s"'),
        ("forever", 'time: invalid duration "forever"'),
        (".", 'time: invalid duration "."'),
        ("5", 'time: missing unit in duration "5"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("1h5", 'time: missing unit in duration "1h5"'),
        ("5d", 'time: unknown unit "d" in duration "5d"'),
        ("5 m", 'time: unknown unit " m" in duration "5 m"'),
        ("٣s", 'time: invalid duration "٣s"'),
    ],
)
def test_what_go_refuses_is_refused_in_gos_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        parse_duration(text)


def test_a_long_text_is_not_repeated_to_the_client() -> None:
    with pytest.raises(ValueError, match="invalid duration") as caught:
        parse_duration("1" * 1_000_000 + "s")
    assert len(str(caught.value)) < 200
