"""What form an answer must have."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mlxd.core.errors import InvalidRequest
from mlxd.core.request import GenerationRequest
from mlxd.dialects.openai import ChatCodec, CompletionCodec

SCHEMA = {"type": "array"}


def parse(**body: Any) -> GenerationRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | body
    return ChatCodec().parse(body, id="abc", now=5.0).request


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "json"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}, SCHEMA),
    ],
)
def test_response_format(given: Any, meant: Any) -> None:
    assert parse(response_format=given).format == meant


@pytest.mark.parametrize(
    ("kind", "value", "format", "pattern"),
    [
        ("json", SCHEMA, SCHEMA, ""),
        ("json", '{"type": "array"}', SCHEMA, ""),
        ("json", {}, {}, ""),
        ("json_object", True, "json", ""),
        ("json_object", False, None, ""),
        ("regex", "[0-9]+", None, "[0-9]+"),
        ("regex", "", None, ""),
        ("choice", ["yes", "no"], None, "yes|no"),
        ("grammar", "", None, ""),
    ],
)
def test_the_same_in_vllms_words(kind: str, value: Any, format: Any, pattern: str) -> None:
    for request in (
        parse(**{f"guided_{kind}": value}),
        parse(structured_outputs={kind: value}),
    ):
        assert (request.format, request.pattern) == (format, pattern)


def test_a_regex_in_sglangs_words() -> None:
    assert parse(regex="[0-9]+") == parse(guided_regex="[0-9]+")
    assert parse(regex="", ebnf="") == parse(regex=None, ebnf=None) == parse()
    body = {"model": "m", "prompt": "hi", "regex": "a+"}
    assert CompletionCodec().parse(body, id="a", now=0.0).request.pattern == "a+"


def test_a_text_of_a_choice_is_no_pattern() -> None:
    texts = ["a.b", "(x)|[y]", "1 + 1 = 2?", "$5 ^ {2}", "back\\slash", "tab\tнет", "c*"]
    pattern = parse(guided_choice=texts).pattern
    for text in texts:
        assert re.fullmatch(pattern, text)
    assert not re.fullmatch(pattern, "axb")


def test_completions_have_it_too() -> None:
    body = {"model": "m", "prompt": "hi", "guided_regex": "a+"}
    assert CompletionCodec().parse(body, id="a", now=0.0).request.pattern == "a+"


@pytest.mark.parametrize(
    "schema",
    ['{"a":' * 65 + "1" + "}" * 65, "[" * 250_000, '{"a":[' + "0," * 200_000 + "0]}"],
    ids=["deep", "open", "long"],
)
def test_a_schema_in_a_string_has_bounds(schema: str) -> None:
    with pytest.raises(InvalidRequest, match="guided_json"):
        parse(guided_json=schema)


def test_one_text_format_leaves_room_for_another() -> None:
    request = parse(response_format={"type": "text"}, guided_regex="a")
    assert (request.format, request.pattern) == (None, "a")


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, {}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"format": "response_format"}),
        ({"guided_json": SCHEMA}, {"format": "guided_json"}),
        ({"regex": "a"}, {"pattern": "regex"}),
        ({"structured_outputs": {"choice": ["a"]}}, {"pattern": "structured_outputs.choice"}),
    ],
)
def test_a_refusal_may_name_the_parameter(body: dict[str, Any], names: dict[str, str]) -> None:
    usual = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert ChatCodec().parse(usual | body, id="abc", now=5.0).names == names
