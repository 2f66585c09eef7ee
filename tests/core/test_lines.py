"""Text that stays on its line, and JSON that does."""

from __future__ import annotations

import json
import unicodedata

import pytest

from mlxd.core.lines import json_line, one_line

ODD = [chr(code) for code in range(0x100) if unicodedata.category(chr(code)) == "Cc"]
ODD += ["\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\ud800", "\x9b", "\ufeff"]


@pytest.mark.parametrize("write", [one_line, json_line])
def test_nothing_breaks_a_line_or_moves_a_cursor(write) -> None:
    said = write("a".join(ODD) + "b")
    assert len(said.splitlines()) == 1
    assert not set(said) & set(ODD)
    assert said.encode()


def test_json_says_the_same() -> None:
    value = {"".join(ODD): ["".join(ODD), 1.5, None], "ё😀": "天👨‍👩‍👧"}
    assert json.loads(json_line(value)) == value
    assert "天👨‍👩‍👧" in json_line(value)
