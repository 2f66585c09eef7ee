"""mlx-lm's parsers of tool calls, with what agents need of them besides.

Where a format writes values as bare text, a string is what stands there: parsers strip it, which
takes the indentation of an edit away, or take the text `123` for a number. And a value has the type
that its tool's schema says, in whatever way the schema says it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlxd.core.request import Json

Parser = Callable[[str, list[Json]], Any]
_KEPT = re.compile("\x00([0-9]+)\x00")
_NULLS = ("null", "None", "none", "")
_TYPES = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object",
    type(None): "null",
}  # fmt: skip
_MOST_LEVELS = 8
"""Of references and choices in each other."""


@dataclass(frozen=True, slots=True)
class _Format:
    """Of a call in bare text."""

    name: re.Pattern[str]
    """Of the function that the values behind it are for."""
    value: re.Pattern[str]
    """`key`, and `value` as it stands."""


def _of_keys(prefix: str) -> _Format:
    key, value = f"{prefix}arg_key", f"{prefix}arg_value"
    return _Format(
        re.compile(rf"^\s*(?P<name>\S+?)\s*(?=<{key}>)"),
        re.compile(
            rf"<{key}>\s*(?P<key>.*?)\s*</{key}>\s*<{value}>(?P<value>.*?)</{value}>", re.DOTALL
        ),
    )


_FORMATS = {
    "qwen3_coder": _Format(
        re.compile(r"<function=\s*(?P<name>[^\s<>]+)"),
        re.compile(r"<parameter=\s*(?P<key>[^\s<>]+)>?\n?(?P<value>.*?)\n?</parameter>", re.DOTALL),
    ),
    "glm47": _of_keys(""),
    "longcat": _of_keys("longcat_"),
    "minimax_m2": _Format(
        re.compile(r"<invoke name=\"?(?P<name>[^\">]+)"),
        re.compile(r"<parameter name=\"?(?P<key>[^\">]+)\"?>(?P<value>.*?)</parameter>", re.DOTALL),
    ),
    "muse_spark": _Format(
        re.compile(r"<atem:invoke\b[^>]*?\bname=\"(?P<name>[^\"]+)"),
        re.compile(
            r"<atem:parameter\b[^>]*?\bname=\"(?P<key>[^\"]+)\"[^>]*>(?P<value>.*?)"
            r"</atem:parameter>",
            re.DOTALL,
        ),
    ),
}
_CALL_ID = re.compile(r"\[CALL_ID\]\s*\w*")
"""Between a name and its arguments, where some of Mistral's models put it."""


def completed(parser: Parser | None) -> Parser | None:
    """A parser of mlx-lm's, with that."""
    name = getattr(parser, "__module__", "").rpartition(".")[2]
    if parser is None:
        return None
    if name == "json_tools":
        return json_calls
    if name == "mistral":
        return lambda text, tools: parser(_CALL_ID.sub("", text), tools)
    return _Typed(parser, _FORMATS[name]) if name in _FORMATS else parser


class _Typed:
    """Strings are put out of the parser's sight; what it makes of others gets the type that their
    schema says.
    """

    def __init__(self, parser: Parser, format: _Format) -> None:
        self._parser = parser
        self._format = format

    def __call__(self, text: str, tools: list[Json]) -> Any:
        """Raises whatever the parser does."""
        kept: list[str] = []
        names = [(found.start(), found["name"]) for found in self._format.name.finditer(text)]
        if not names:
            return _offered(self._parser(text, tools), tools)

        def keep(found: re.Match[str]) -> str:
            name = next((name for at, name in reversed(names) if at < found.start()), "")
            value = found["value"]
            types = _types_of(tools, name, found["key"])
            null = "null" in types and value.strip() in _NULLS
            if "string" not in types or not types <= {"string", "null"} or null:
                return found[0]
            kept.append(value)
            start, end = (place - found.start() for place in found.span("value"))
            return f"{found[0][:start]}\x00{len(kept) - 1}\x00{found[0][end:]}"

        parsed = self._parser(self._format.value.sub(keep, text), tools)
        calls = parsed if isinstance(parsed, list) else [parsed]
        return [_typed(call, kept, tools) for call in calls]


def _offered(parsed: Any, tools: list[Json]) -> Any:
    """What a parser that takes any words for a call gave. Raises ValueError."""
    names = [(tool.get("function") or {}).get("name") for tool in tools]
    if not isinstance(parsed, dict) or parsed.get("name") not in names:
        raise ValueError("it names no function that is offered")
    return parsed


def _typed(call: Json, kept: list[str], tools: list[Json]) -> Json:
    arguments = {}
    for key, value in call["arguments"].items():
        hidden = _KEPT.fullmatch(value) if isinstance(value, str) else None
        if hidden is not None:
            arguments[key] = kept[int(hidden[1])]
        else:
            arguments[key] = _as_type(value, _types_of(tools, call["name"], key))
    return call | {"arguments": arguments}


def _as_type(value: Any, types: frozenset[str]) -> Any:
    """What a text stands for that its schema does not take for one."""
    if not isinstance(value, str) or not types or "string" in types:
        return value
    text = value.strip()
    try:
        found = json.loads(text.lower() if "boolean" in types else text)
    except ValueError:
        return value
    kind = _TYPES[type(found)]
    return found if kind in types or (kind == "integer" and "number" in types) else value


def _types_of(tools: list[Json], name: str, key: str) -> frozenset[str]:
    """The types that an argument may have; empty: any."""
    for tool in tools:
        function = tool.get("function") or {}
        parameters = function.get("parameters")
        if function.get("name") == name and isinstance(parameters, dict):
            properties = parameters.get("properties") or {}
            return frozenset(_types(properties.get(key), parameters, _MOST_LEVELS))
    return frozenset()


def _types(schema: Any, root: Json, levels: int) -> set[str]:
    """Empty: any."""
    if not isinstance(schema, dict) or not levels:
        return set()
    if "$ref" in schema:
        return _types(_target(root, schema["$ref"]), root, levels - 1)
    if "type" in schema:
        said = schema["type"]
        return {said} if isinstance(said, str) else set(said)
    if "const" in schema or "enum" in schema:
        return {_TYPES[type(value)] for value in schema.get("enum", [schema.get("const")])}
    for key in ("anyOf", "oneOf"):
        if key in schema:
            each = [_types(one, root, levels - 1) for one in schema[key]]
            return set().union(*each) if all(each) else set()
    found = (_types(one, root, levels - 1) for one in schema.get("allOf", ()))
    return next(filter(None, found), set())


def _target(root: Json, ref: Any) -> Any:
    found: Any = root
    for part in str(ref).removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def json_calls(text: str, tools: Any = None) -> list[Json]:
    """JSON and nothing else: calls, one after the other or in lists, whose strings may have line
    breaks as they are. Raises ValueError.
    """
    decoder = json.JSONDecoder(strict=False)
    calls: list[Json] = []
    at = _gap(text, 0)
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        calls += value if isinstance(value, list) else [value]
        at = _gap(text, at)
    return [_call_of(call) for call in calls]


def _gap(text: str, at: int) -> int:
    """Behind what separates two calls."""
    found = re.compile(r"[\s,;]*").match(text, at)
    return found.end() if found else at


def _call_of(call: Any) -> Json:
    if not isinstance(call, dict):
        raise ValueError("a call is an object")
    call = call["function"] if isinstance(call.get("function"), dict) else call
    name = call.get("name") or call.get("tool_name") or call.get("function")
    arguments = call.get("arguments", call.get("parameters"))
    if arguments is None and not call.keys() <= _CALL_KEYS:
        raise ValueError("its arguments have another name")
    return {"name": name, "arguments": {} if arguments is None else arguments}


_CALL_KEYS = {
    "name", "tool_name", "function", "id", "tool_call_id", "type", "arguments", "parameters",
}  # fmt: skip
