import re

from hypothesis import given
from hypothesis import strategies as st

from mlxd.core.wildcard import Patterns, literal_prefix, matches

LETTERS = st.text(alphabet="ab*", max_size=8)


@given(LETTERS, st.text(alphabet="ab", max_size=8))
def test_a_pattern_matches_what_its_expression_does(pattern, text):
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, text) == bool(re.fullmatch(expression, text))


@given(st.lists(LETTERS, max_size=4), st.lists(st.text(alphabet="ab", max_size=4), max_size=4))
def test_several_patterns_match_what_one_of_them_does(patterns, texts):
    one_does = any(matches(pattern, text) for pattern in patterns for text in texts)
    assert Patterns(patterns).match(texts) == one_does


def test_only_the_star_is_special():
    assert matches("claude-*", "claude-opus-4.5")
    assert matches("*", "")
    assert not matches("claude-?", "claude-x")
    assert not matches("[a]", "a")
    assert not matches("aba*ba", "aba"), "the ends may not overlap"
    assert literal_prefix("claude-*-5*") == "claude-"


def test_a_long_text_does_not_take_longer_than_its_length():
    assert not matches("a*" * 100 + "b", "a" * 100_000)
