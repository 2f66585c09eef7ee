"""Anthropic's tools, and what the model is to do with them -> mlxd's."""

from __future__ import annotations

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import ToolChoice
from mlxd.dialects.anthropic.client_tools import function_of
from mlxd.dialects.anthropic.errors import missing, required
from mlxd.dialects.fields import Fields, Json

_SHOWN = 40
"""Characters of a word of the client's, in a refusal."""


def read_tools(fields: Fields) -> tuple[tuple[Json, ...], ToolChoice]:
    """The tools that `tool_choice` leaves, and what it leaves to the model."""
    tools = tuple(_tool(tool) for tool in fields.each("tools"))
    choice = fields.fields("tool_choice")
    if choice is None:
        return tools, ToolChoice()
    parallel = not choice.flag("disable_parallel_tool_use")
    match choice.text("type"):
        case "auto":
            return tools, ToolChoice(parallel=parallel)
        case "none":
            return (), ToolChoice()
        case "any":
            if not tools:
                raise InvalidRequest(
                    "tool_choice: a choice of type any needs tools", param="tool_choice"
                )
            return tools, ToolChoice(required=True, parallel=parallel)
        case "tool":
            name = required(choice, "name")
            named = ToolChoice(required=True, names=(name,), parallel=parallel)
            return _named(tools, name), named
        case _:
            raise InvalidRequest(
                "tool_choice.type: expected auto, any, tool or none", param="tool_choice.type"
            )


def _tool(fields: Fields) -> Json:
    """One tool, as chat templates want it."""
    kind = fields.text("type")
    if kind not in (None, "custom"):
        return {"type": "function", "function": _known(kind, fields)}
    function: Json = {"name": required(fields, "name")}
    description = fields.text("description")
    if description is not None:
        function["description"] = description
    schema = fields.mapping("input_schema")
    if schema is None:
        raise missing(fields, "input_schema")
    return {"type": "function", "function": function | {"parameters": schema}}


def _known(kind: str, fields: Fields) -> Json:
    """One that its type says all of."""
    known = function_of(kind, required(fields, "name"))
    if known is None:
        raise UnsupportedFeature(
            f"{fields.path('type')}: tools of type {kind[:_SHOWN]} are not offered; a tool is "
            "described by a name and an input_schema",
            param=fields.path("type"),
        )
    return known


def _named(tools: tuple[Json, ...], name: str) -> tuple[Json, ...]:
    found = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not found:
        raise InvalidRequest(
            f"tool_choice.name: '{name[:_SHOWN]}' is not among the tools", param="tool_choice.name"
        )
    return found
