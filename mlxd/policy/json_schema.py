"""The schema for editors: JSON Schema (draft 2020-12), one file for each policy file.

It refuses nothing that the daemon accepts. What one value cannot know (rules between fields) and
what no pattern says (an impossible network, a duration of years) only the daemon refuses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from mlxd.policy import keys, strict_yaml
from mlxd.policy.keys import ENTRY, ITEM, Key
from mlxd.policy.load import SCHEMA
from mlxd.policy.schema import Policy, Takes
from mlxd.policy.units import Written

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def editor_schema(kind: str) -> Schema:
    """The JSON Schema of one policy file."""
    file = keys.table()[(kind,)]
    whole = _section(file.annotation, file.path)
    version = {"const": SCHEMA, "description": "The version of this file's format."}
    return {
        "$schema": DRAFT,
        "title": f"mlxd: {kind}.yaml",
        "description": file.description,
        **whole,
        "required": ["schema"],
        "properties": {"schema": version, **whole["properties"]},
    }


def text(kind: str) -> str:
    """The whole of policies/schema/<kind>.schema.json."""
    return json.dumps(editor_schema(kind), indent=2, ensure_ascii=False) + "\n"


def _section(model: type[Policy], path: tuple[str, ...]) -> Schema:
    properties = {name: _described(keys.table()[(*path, name)]) for name in model.attributes()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _described(key: Key) -> Schema:
    taken = _taken(key.annotation, key.field.metadata, key.path)
    if key.section:
        return {"description": key.description, **taken}
    return {
        "description": _hover(key),
        **taken,
        "default": _value(key.default),
        "examples": [_value(key.example)],
        "x-unit": key.extra("unit"),
        "x-reload": key.extra("reload"),
    }


def _hover(key: Key) -> str:
    """What an editor shows above a key: its meaning, then what its comment in the file says."""
    unit = f"Unit: {key.extra('unit')}. " if key.extra("unit") else ""
    return f"{key.description} {unit}Reload: {key.extra('reload')}."


def _value(written: str) -> Any:
    """What a value in YAML is in JSON."""
    document = strict_yaml.parse(f"value: {written}\n".encode())
    assert document.data is not None
    return document.data["value"]


def _taken(annotation: Any, metadata: list[Any], path: tuple[str, ...]) -> Schema:
    """What a type takes."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [known for one in arguments[1:] for known in getattr(one, "metadata", [one])]
        return _taken(arguments[0], [*metadata, *inner], path)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        items = {"items": _taken(arguments[0], [], (*path, ITEM))}
        return {"type": "array", **items, **_bounds(metadata, min_length="minItems")}
    if origin is Mapping:
        names, entries = _taken(arguments[0], [], path), _taken(arguments[1], [], (*path, ENTRY))
        return {"type": "object", "propertyNames": names, "additionalProperties": entries}
    if arguments:
        return {"anyOf": [_taken(kind, metadata, path) for kind in arguments]}
    return _taken_plain(annotation, metadata, path)


def _taken_plain(annotation: Any, metadata: list[Any], path: tuple[str, ...]) -> Schema:
    if isinstance(annotation, type) and issubclass(annotation, Policy):
        return _section(annotation, path)
    if isinstance(annotation, type) and issubclass(annotation, Written):
        text = {"type": "string", "pattern": annotation.pattern}
        number = {"type": "number", **annotation.numbers}
        return {"anyOf": [text, number]} if annotation.numbers else text
    if annotation in (int, float):
        kind = "integer" if annotation is int else "number"
        return {"type": kind, **_bounds(metadata, ge="minimum", le="maximum")}
    if annotation is str:
        return {"type": "string", "pattern": _pattern(metadata)}
    return {"type": {bool: "boolean", type(None): "null"}[annotation]}


def _bounds(metadata: list[Any], **names: str) -> Schema:
    """Bounds of a number or a list, by the names that JSON Schema has for them."""
    return {
        name: getattr(known, ours)
        for known in metadata
        for ours, name in names.items()
        if hasattr(known, ours)
    }


def _pattern(metadata: list[Any]) -> str:
    return next(known.pattern for known in metadata if isinstance(known, Takes))
