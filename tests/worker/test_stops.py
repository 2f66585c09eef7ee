"""Stop strings never appear, however the text is cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.worker.stops import StopStrings


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopStrings(stops)
    text = "".join(matcher.feed(piece) for piece in pieces)
    return text + matcher.release(), matcher.found


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "found"),
    [
        (("STOP",), ["hello STOP there"], "hello ", "STOP"),
        (("STOP",), ["hello S", "TO", "P there"], "hello ", "STOP"),
        (("STOP",), ["hello STO", "NE"], "hello STONE", None),
        (("STOP",), ["hello STO"], "hello STO", None),
        (("aab",), ["aaa", "ab"], "aa", "aab"),
        (("b", "abc"), ["ab", "c"], "a", "b"),
        (("bc", "abc"), ["abc"], "", "abc"),
        (("конец", "😀"), ["при", "вет ко", "нец"], "привет ", "конец"),
        (("",), ["text"], "text", None),
        ((), ["text"], "text", None),
        (("\n\n",), ["a\n", "\nb"], "a", "\n\n"),
    ],
)
def test_stop_strings(stops, pieces, text, found):
    assert run(stops, pieces) == (text, found)


def test_only_a_possible_start_waits():
    matcher = StopStrings(("STOP",))
    assert matcher.feed("abcST") == "abc"
    assert matcher.holding
    assert matcher.feed("A") == "STA"
    assert not matcher.holding


def test_nothing_follows_a_stop_string():
    matcher = StopStrings(("x",))
    assert matcher.feed("axb") == "a"
    assert matcher.feed("more") == ""
    assert matcher.release() == ""


def test_a_released_start_is_not_continued():
    matcher = StopStrings(("ab",))
    assert matcher.feed("a") == ""
    assert matcher.release() == "a"
    assert matcher.feed("b") == "b"


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.text("abc", max_size=30),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_the_cut_of_the_text_does_not_matter(stops, text, cuts):
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    shown, found = run(tuple(stops), pieces)
    assert (shown, found) == run(tuple(stops), [text])
    assert not any(stop in shown for stop in stops)
    assert (found is None) == (shown == text)
