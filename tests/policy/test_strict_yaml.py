"""YAML for configuration: what scalars mean, where things stand, what is refused."""

from __future__ import annotations

import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.policy import strict_yaml
from mlxd.policy.strict_yaml import MAX_BYTES, Place, dotted, parse, parts, scalar
from mlxd.policy.units import written

SAME_EVERY_TIME = settings(deadline=None, derandomize=True)


@pytest.mark.parametrize(
    "text",
    [
        *("on", "off", "yes", "no", "Yes", "NO", "y", "n"),
        *("11:43", "1:30:00", "017", "-017", "00", "0b101", "1_000", "0o8", "0xg"),
        *("2026-01-26", "2026-01-26T10:00:00Z", "=", "nUll", "tRue", "1e", ".", "-", "+", "1.2.3"),
    ],
)
def test_what_older_yaml_guesses_at_is_text(text: str) -> None:
    assert scalar(text) == text
    assert isinstance(scalar(text), str)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("", None), ("~", None), ("null", None), ("NULL", None)),
        *(("true", True), ("True", True), ("false", False), ("FALSE", False)),
        *(("0", 0), ("-0", 0), ("+7", 7), ("-12", -12), ("0o17", 15), ("0x1F", 31)),
        *(("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("-1.5E-1", -0.15)),
        *((".inf", float("inf")), ("-.Inf", float("-inf")), ("+.INF", float("inf"))),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_not_a_number_is_one() -> None:
    assert str(scalar(".nan")) == "nan"


def test_numbers_have_at_most_18_digits() -> None:
    assert parse(b"a: -999999999999999999").data == {"a": -(10**18) + 1}
    assert parse(b"a: 999999999999999999").problems == []
    assert parse(b"a: 1000000000000000000").problems[0].place == Place(1, 4)
    assert parse(b"a: '1000000000000000000'").problems == []


def test_quoted_scalars_are_text() -> None:
    assert parse(b"a: '5'\nb: \"true\"\nc: |\n  7\n").data == {"a": "5", "b": "true", "c": "7\n"}


def test_keys_are_text_whatever_they_look_like() -> None:
    document = parse(b"1: a\ntrue: b\nnull: c\non: d\n1.5: e\n")
    assert document.data == {"1": "a", "true": "b", "null": "c", "on": "d", "1.5": "e"}


def test_every_key_and_value_has_its_place() -> None:
    document = parse("a:\n  - x: 1\n    é: 2\nb: {c: [3, 4]}\n".encode())
    assert document.data == {"a": [{"x": 1, "é": 2}], "b": {"c": [3, 4]}}
    assert document.keys[("a", 0, "é")] == Place(3, 5)
    assert document.values[("a", 0, "é")] == Place(3, 8)
    assert document.values[("b", "c", 1)] == Place(4, 12)
    assert document.place(("b", "c")) == Place(4, 5)
    assert document.place(("b", "c", 1)) == Place(4, 12)
    assert document.place(("b", "nothing", "here")) == Place(4, 1)


def test_a_duplicate_leaves_value_and_place_of_the_first() -> None:
    document = parse(b"a: {x: 1}\nb: 2\na: {x: 3}\n")
    assert document.data == {"a": {"x": 1}, "b": 2}
    assert document.place(("a", "x")) == Place(1, 5)
    assert [str(problem.message) for problem in document.problems] == [
        'duplicate key "a": first set in line 1'
    ]


def test_a_byte_order_mark_is_no_text() -> None:
    assert parse(b"\xef\xbb\xbfa: 1\n").data == {"a": 1}


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not() -> None:
    fits = b"a: 1\n#" + b"x" * (MAX_BYTES - 6)
    assert parse(fits).data == {"a": 1}
    document = parse(fits + b"x")
    assert document.data is None
    assert [problem.message for problem in document.problems] == ["the file is larger than 256 KiB"]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}")])
def test_a_depth_bomb_is_stopped_early(opening: str, closing: str) -> None:
    document = parse(f"a: {opening * 5000}1{closing * 5000}".encode())
    assert document.data is None
    assert document.problems[0].message == "nested deeper than 16 levels"
    assert len(document.values) < 20


def test_the_deepest_nesting_is_read() -> None:
    assert parse(f"a: {'[' * 15}1{']' * 15}".encode()).problems == []


def test_aliases_are_never_followed() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 9))
    document = parse(bomb.encode())
    assert len(document.values) < 100
    assert sum("an alias" in problem.message for problem in document.problems) == 72


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_with_and_without_the_c_library_the_same_is_read(
    loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_yaml, "_LOADER", loader)
    document = parse("a: [1, {b: 'c'}]\nd:\n  é: 300s # x\nd: 2\ne: *f\n".encode())
    assert document.data == {"a": [1, {"b": "c"}], "d": {"é": "300s"}}
    assert document.keys[("d", "é")] == Place(3, 3)
    assert [problem.place for problem in document.problems] == [Place(4, 1), Place(5, 4)]
    assert parse(b"a: [").data is None
    assert parse(b"").problems[0].place == Place(1, 1)


@SAME_EVERY_TIME
@given(st.binary(max_size=200))
def test_whatever_the_bytes_reading_them_raises_nothing(raw: bytes) -> None:
    document = parse(raw)
    assert document.data is not None or document.problems


@SAME_EVERY_TIME
@given(st.text(alphabet="ab: -[]{},&*!|>'\"%@`#\n\t?<~01.", max_size=60))
def test_whatever_the_punctuation_reading_it_raises_nothing(text: str) -> None:
    document = parse(text.encode())
    assert document.data is not None or document.problems


@SAME_EVERY_TIME
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5, unique=True))
def test_text_that_is_written_is_read_back(words: list[str]) -> None:
    raw = "".join(f"{written(word)}: {written(word)}\n" for word in words).encode()
    document = parse(raw)
    if not any(problem.message == "an empty key" for problem in document.problems):
        assert document.problems == []
    assert document.data == {word: word for word in words}


@pytest.mark.parametrize("hidden", ["\x85", "\u2028", "\u2029"])
def test_no_line_ends_where_editors_show_none(hidden: str) -> None:
    name = f"U+{ord(hidden):04X}"
    for text in (f"a: 1\nb: 2 # x{hidden}c: 3\n", f'a: 1\nb: "xxxx{hidden}"\n'):
        document = parse(text.encode())
        assert document.data is None
        [problem] = document.problems
        assert problem.place == Place(2, 9)
        assert problem.message == f"the line break {name}: write it as an escape, in quotes"
    assert parse(f'a: "x\\u{ord(hidden):04x}"\n'.encode()).data == {"a": f"x{hidden}"}


def test_paths_are_written_and_read() -> None:
    path = ("models", "models", "qwen2.5:7b", "aliases", 0)
    assert dotted(path) == 'models.models["qwen2.5:7b"].aliases[0]'
    assert parts(dotted(path)) == path
    assert parts("limits.rate_limit[0].requests") == ("limits", "rate_limit", 0, "requests")


def test_reading_needs_no_more_stack_than_its_depth() -> None:
    limit = sys.getrecursionlimit()
    document = parse(b"[" * 100_000)
    assert document.data is None
    assert sys.getrecursionlimit() == limit


@given(st.lists(st.one_of(st.text(min_size=1), st.integers(0, 999_999_999)), min_size=1))
def test_a_path_is_written_and_read_back(path: list[str | int]) -> None:
    assert parts(dotted(tuple(path))) == tuple(path)


@pytest.mark.parametrize("key", ["", ".", "[", "]", "a[", 'a["\\q"]', 'a["', "a..b", "[0]"])
def test_a_key_that_nobody_would_write_is_read_all_the_same(key: str) -> None:
    assert isinstance(parts(key), tuple)
