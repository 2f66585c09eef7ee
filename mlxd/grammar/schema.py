"""A JSON schema as it is compiled: an object that lists its properties has no others, unless it
says so, and an integer without bounds has as many digits as programs read. The standard would let a
model add any, and a model that may does not end. Bounds are such as can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlxd.core.request import Json

_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_ONE = ("items", "additionalProperties", "additionalItems")
_SHAPING = ("properties", "required", "minProperties", "maxProperties", "additionalProperties")
_FARTHEST = 10**18
"""From zero: of an integer whose schema sets no bound. It fits into 64 bits."""
_LOWER = ("minimum", "exclusiveMinimum")
_UPPER = ("maximum", "exclusiveMaximum")
_REACH = 2**63 - 1024
"""From zero: how far bounds may be for llguidance, which counts in 64 bits."""
_LONGEST = 2**32 - 1
"""Characters of a text, which it counts in 32."""
_OPENING = ("additionalProperties", "patternProperties", "unevaluatedProperties")


def narrowed(schema: Json) -> Json:
    """Whatever it allows, `schema` allows."""
    return _Narrowing(schema).run()


def without_patterns(schema: Json) -> Json:
    """The same, but for the regular expressions in it."""
    bare: Json = _without_patterns(schema)
    return bare


def _without_patterns(node: Any) -> Any:
    """Where names had to match one, any other name may stand."""
    if not isinstance(node, dict):
        return node
    left_out = {"pattern"}
    if "patternProperties" in node:
        left_out |= {"patternProperties", "additionalProperties"}
    kept = {key: value for key, value in node.items() if key not in left_out}
    return _with_inner(kept, _without_patterns)


class _Narrowing:
    """One schema's. What several schemas describe together is left open: each knows its own part
    of the properties.
    """

    def __init__(self, root: Json) -> None:
        self._root = root
        self._joined: set[int] = set()
        """The schemas, by identity, that are one of several for the same value."""

    def run(self) -> Json:
        for node in _all(self._root):
            parts = list(self._parts(node))
            if len(parts) > 1:
                for part in parts:
                    self._join(part)
        narrow: Json = self._narrow(self._root)
        return narrow

    def _parts(self, node: Json) -> Iterator[Any]:
        """The schemas that all describe what `node` does."""
        if any(key in node for key in _SHAPING):
            yield node
        if "$ref" in node:
            yield self._target(node["$ref"])
        for key in ("anyOf", "oneOf"):
            if key in node:
                yield {key: node[key]}
        yield from _list(node.get("allOf"))

    def _join(self, node: Any) -> None:
        if not isinstance(node, dict) or id(node) in self._joined:
            return
        self._joined.add(id(node))
        for key in ("anyOf", "oneOf", "allOf"):
            for member in _list(node.get(key)):
                self._join(member)
        if "$ref" in node:
            self._join(self._target(node["$ref"]))

    def _target(self, ref: Any) -> Any:
        """What a reference within the schema points at; None for any other."""
        if not isinstance(ref, str) or not ref.startswith("#"):
            return None
        found: Any = self._root
        for part in ref[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def _narrow(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        narrow = _with_inner(node, self._narrow)
        if id(node) not in self._joined and _lists_its_properties(node):
            narrow["additionalProperties"] = False
        if node.get("type") == "integer":
            narrow = _bounds(node) | narrow
        return narrow | _within_reach(node)


def _with_inner(node: Json, change: Callable[[Any], Any]) -> Json:
    """A copy, with each schema directly in it changed."""
    changed = dict(node)
    for key in _OF_NAMES:
        if isinstance(node.get(key), dict):
            changed[key] = {name: change(each) for name, each in node[key].items()}
    for key in (*_OF_LISTS, *_OF_ONE):
        if isinstance(node.get(key), list):
            changed[key] = [change(each) for each in node[key]]
        elif key in _OF_ONE and isinstance(node.get(key), dict):
            changed[key] = change(node[key])
    return changed


def _all(node: Any) -> Iterator[Json]:
    """Every schema in a schema, itself included."""
    if not isinstance(node, dict):
        return
    yield node
    for key in _OF_NAMES:
        if isinstance(node.get(key), dict):
            for each in node[key].values():
                yield from _all(each)
    for key in (*_OF_LISTS, *_OF_ONE):
        for each in _list(node.get(key)) if key in _OF_LISTS else (node.get(key),):
            yield from _all(each)
    for each in _list(node.get("items")):
        yield from _all(each)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _bounds(node: Json) -> Json:
    """Those that are missing."""
    bounds: Json = {}
    if not any(key in node for key in _LOWER):
        bounds["minimum"] = -_FARTHEST
    if not any(key in node for key in _UPPER):
        bounds["maximum"] = _FARTHEST
    return bounds


def _within_reach(node: Json) -> Json:
    """Those that are too far from zero, as far as they may be."""
    low = {key: -_REACH for key in _LOWER if _number(node.get(key)) < -_REACH}
    high = {key: _REACH for key in _UPPER if _number(node.get(key)) > _REACH}
    long = {"maxLength": _LONGEST} if _number(node.get("maxLength")) > _LONGEST else {}
    return low | high | long


def _number(value: Any) -> float:
    """0 for anything else."""
    return value if isinstance(value, int | float) else 0


def _lists_its_properties(node: Json) -> bool:
    names = node.get("properties")
    if not isinstance(names, dict) or any(key in node for key in _OPENING):
        return False
    return all(name in names for name in _required(node))


def _required(node: Json) -> list[str]:
    return [name for name in _list(node.get("required")) if isinstance(name, str)]
