"""What a schema leaves open is closed, where nothing that it allows is needed elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.request import GenerationRequest
from mlxd.grammar.compiling import matcher_of
from mlxd.grammar.schema import narrowed
from mlxd.grammar.source import sources_of

STRING = {"type": "string"}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def test_an_object_has_the_properties_that_it_lists():
    open_one = {"type": "object", "properties": {"a": STRING}}
    assert narrowed(open_one) == closed(a=STRING)
    assert open_one == {"type": "object", "properties": {"a": STRING}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": True},
        {"type": "object", "properties": {"a": STRING}, "additionalProperties": STRING},
        {"type": "object", "properties": {"a": STRING}, "patternProperties": {"^x": STRING}},
        {"type": "object", "properties": {"a": STRING}, "required": ["b"]},
    ],
)
def test_one_that_says_it_has_others_keeps_them(schema):
    assert narrowed(schema) == schema


def test_it_is_so_at_every_depth():
    inner = {"type": "object", "properties": {"a": STRING}}
    schema = {
        "$defs": {"d": inner},
        "type": "array",
        "items": {"anyOf": [inner, {"$ref": "#/$defs/d"}]},
    }
    assert narrowed(schema) == {
        "$defs": {"d": closed(a=STRING)},
        "type": "array",
        "items": {"anyOf": [closed(a=STRING), {"$ref": "#/$defs/d"}]},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": STRING}}, {"properties": {"b": STRING}}]},
        {"properties": {"a": STRING}, "anyOf": [{"properties": {"b": STRING}}]},
        {
            "$defs": {"base": {"properties": {"a": STRING}}},
            "$ref": "#/$defs/base",
            "properties": {"b": STRING},
        },
        {
            "$defs": {
                "base": {"anyOf": [{"$ref": "#/$defs/more"}]},
                "more": {"properties": {"a": STRING}},
            },
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": STRING}}],
        },
    ],
)
def test_what_several_schemas_describe_together_is_left_open(schema):
    assert narrowed(schema) == schema


def test_a_reference_alone_in_an_all_of_describes_it_alone():
    schema = {"$defs": {"d": {"properties": {"a": STRING}}}, "allOf": [{"$ref": "#/$defs/d"}]}
    assert narrowed(schema)["$defs"]["d"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": 5, "required": [{}, []], "type": {}},
        {"properties": {"a": 7}, "required": [["a"]]},
        {"$ref": 5, "allOf": 3, "oneOf": [1, 2], "anyOf": {}},
        {"$ref": "#/a/b", "a": 5, "properties": {}},
        {"oneOf": [{"required": [{}]}, {"required": "x"}]},
        {"$ref": "#", "allOf": [{"$ref": "#"}]},
        {"items": [5, {"properties": []}], "type": "integer", "minimum": "x"},
    ],
)
def test_whatever_it_is_it_does_not_fail_here(schema):
    narrowed(schema)


def test_an_integer_has_an_end() -> None:
    whole = {"type": "integer"}
    assert narrowed(whole) == {"type": "integer", "minimum": -(10**18), "maximum": 10**18}
    assert narrowed({**whole, "minimum": 0}) == {**whole, "minimum": 0, "maximum": 10**18}
    bounded = {**whole, "exclusiveMinimum": 1, "exclusiveMaximum": 9}
    assert narrowed(bounded) == bounded
    assert narrowed({"type": ["integer", "null"]}) == {"type": ["integer", "null"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": ["integer", "null"], "exclusiveMinimum": -(2**64)},
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 3.4028234663852886e38},
    ],
)
def test_bounds_may_be_those_of_the_types_of_programs(schema):
    matcher = _matcher(schema)
    assert not matcher.is_error(), matcher.get_error()
    far = str(9 * 10**18).encode()
    assert matcher.try_consume_tokens([*far]) == len(far)


@pytest.mark.parametrize("most", [2**32, 2**53 - 1, 2**63 - 1])
def test_a_text_may_be_as_long_as_programs_count(most):
    matcher = _matcher({"type": ["string", "null"], "minLength": 1, "maxLength": most})
    assert not matcher.is_error(), matcher.get_error()
    assert matcher.try_consume_tokens([*b'"a"']) == 3
    assert matcher.is_accepting()


def _matcher(schema: dict[str, Any]) -> Any:
    from llguidance import LLTokenizer

    source = next(sources_of(GenerationRequest(model="m", format=schema)))
    return matcher_of(source.text, LLTokenizer("byte"))
