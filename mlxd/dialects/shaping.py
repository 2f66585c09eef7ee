"""Words for the shapes of bodies: JSON Schema (draft 2020-12), as OpenAPI 3.1 has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]
Shapes = Mapping[str, Schema]
"""By name; `refer` leads to one."""

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}
TIME: Schema = {"type": "string", "format": "date-time"}
TEXTS: Schema = {"type": "array", "items": TEXT}
NULL: Schema = {"type": "null"}


def refer(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema, most: int | None = None, *, least: int = 0) -> Schema:
    """An array."""
    bounds = {"minItems": least} if least else {}
    return {
        "type": "array",
        "items": items,
        **bounds,
        **({} if most is None else {"maxItems": most}),
    }


def text(most: int | None = None, *, least: int = 0, pattern: str = "") -> Schema:
    """`most`, `least`: characters."""
    shape: Schema = {"type": "string"}
    if least:
        shape["minLength"] = least
    if most is not None:
        shape["maxLength"] = most
    return shape | {"pattern": pattern} if pattern else shape


def number(low: float | None = None, high: float | None = None, kind: str = "number") -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": kind, **{name: bound for name, bound in bounds.items() if bound is not None}}


def whole(low: int | None = None, high: int | None = None) -> Schema:
    """An integer."""
    return number(low, high, "integer")


def one_of(words: Iterable[str]) -> Schema:
    return {"type": "string", "enum": list(dict.fromkeys(words))}


def always(value: Any) -> Schema:
    return {"const": value}


def either(*shapes: Schema) -> Schema:
    return {"anyOf": list(shapes)}


def or_null(shape: Schema) -> Schema:
    plain = isinstance(shape.get("type"), str) and "enum" not in shape
    return shape | {"type": [shape["type"], "null"]} if plain else either(shape, NULL)


def mapping(values: Schema) -> Schema:
    """An object whose names are anybody's."""
    return {"type": "object", "additionalProperties": values}


def said(shape: Schema, words: str) -> Schema:
    """With a description."""
    return shape | {"description": words}


def answer(always_there: Shapes, sometimes: Shapes | None = None) -> Schema:
    """What mlxd writes: an object with these and no others."""
    return {
        "type": "object",
        "properties": {**always_there, **(sometimes or {})},
        "required": list(always_there),
    }


def question(needed: Shapes, open_to_all: Shapes | None = None) -> Schema:
    """What a client writes: null stands for nothing, and names that nobody asks for are ignored."""
    rest = {name: or_null(shape) for name, shape in (open_to_all or {}).items()}
    return {"type": "object", "properties": {**needed, **rest}, "required": list(needed)}
