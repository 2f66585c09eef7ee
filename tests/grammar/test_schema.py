"""What a schema leaves open is closed, where nothing that it allows is needed elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.grammar.schema import narrowed

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
