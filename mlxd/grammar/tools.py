"""Tool calls that a client insists on, as a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from mlxd.core.request import Json, ToolChoice
from mlxd.grammar.markers import Markers
from mlxd.grammar.options import LENIENT, OPTIONS
from mlxd.grammar.schema import narrowed, without_patterns

MOST_CALLS = 64
"""Of one answer: a model that repeats itself must end some time."""


class BadTools(Exception):
    """No grammar can be made of them; its words are for the client."""

    quotes = True
    """Them."""


def chosen(tools: Sequence[Json], choice: ToolChoice) -> list[Json]:
    """The functions that may be called. Raises BadTools."""
    functions = [function for tool in tools if isinstance(function := tool.get("function"), dict)]
    functions = [function for function in functions if isinstance(function.get("name"), str)]
    if choice.names:
        functions = [function for function in functions if function["name"] in choice.names]
    if not functions:
        raise BadTools("a tool must be called, and none is offered")
    return functions


def calls_grammars(
    tools: Sequence[Json], choice: ToolChoice, markers: Markers | None
) -> Iterator[str]:
    """One call, or several; without `markers` as plain JSON, an array where there may be several.

    The first that compiles counts: not every regular expression of other programs does, and the
    second has none. Raises BadTools.
    """
    functions = chosen(tools, choice)
    schemas = [arguments_schema(function) for function in functions]
    yield _grammar(functions, schemas, choice, markers)
    bare = [without_patterns(schema) for schema in schemas]
    if bare != schemas:
        yield _grammar(functions, bare, choice, markers)


def _grammar(
    functions: Sequence[Json],
    schemas: Sequence[Json],
    choice: ToolChoice,
    markers: Markers | None,
) -> str:
    """`schemas`: of the functions' arguments."""
    calls = [_call(*each) for each in zip(functions, schemas, strict=True)]
    rules = [f"call_{n}: {call}" for n, call in enumerate(calls)]
    body = " | ".join(f"call_{n}" for n in range(len(calls)))
    more = MOST_CALLS - 1
    if markers is None:
        start = f'"[" call (", " call){{0,{more}}} "]"' if choice.parallel else "call"
        rules.append(f"call: {body}")
    else:
        start = f'call ("\\n" call){{0,{more}}}' if choice.parallel else "call"
        opened = f'{_marker(markers.start, markers.start_token)} "\\n"'
        closed = f'"\\n" {_marker(markers.end, markers.end_token)}'
        rules.append(f"call: {opened} body {closed}\nbody: {body}")
    return OPTIONS + "\n".join([f"start: {start}", *rules])


def _call(function: Json, schema: Json) -> str:
    head = '{"name": ' + json.dumps(function["name"]) + ', "arguments": '
    return f'{json.dumps(head)} %json {json.dumps(schema)} "}}"'


def arguments_schema(function: Json) -> Json:
    """A function that names no parameters takes none. Raises BadTools."""
    parameters = function.get("parameters")
    if not parameters:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise BadTools(f"the parameters of tool {function['name']} must be an object's schema")
    return narrowed({"type": "object"} | parameters) | {"x-guidance": LENIENT}


def _marker(text: str, token: int | None) -> str:
    return json.dumps(text) if token is None else f"<[{token}]>"
