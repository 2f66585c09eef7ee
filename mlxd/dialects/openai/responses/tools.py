"""Tools in this API's flat form, and what the model is told of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import ToolChoice
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.errors import required

HOSTED = frozenset(
    {
        "image_generation",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
"""What agents offer beside tools of their own, in case that the service has it."""
_ANY_TEXT: Json = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
SYNTAXES = ("lark", "regex")
CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool under the name that the model knows it by."""

    told: str
    """The model's name for it."""
    name: str
    """The client's."""
    namespace: str
    """The client's group of tools that it is in, or empty."""
    custom: bool
    """It takes any text; the model is told of a function with one argument, `input`."""
    template: Json
    """As chat templates want it."""


def read_tools(fields: Fields, *, more: bool = False) -> list[Json]:
    """The tools, checked, as the answer repeats them. `more`: there are others.

    A hosted one beside others is left out, as if the model had never used it; alone it is refused.
    """
    tools, hosted = [], None
    for tool in fields.each("tools"):
        if tool.text("type") in HOSTED:
            hosted = hosted or tool
        else:
            tools.append(_tool(tool))
    if hosted is not None and not tools and not more:
        raise _not_here(hosted)
    return tools


def with_more(tools: Sequence[Json], more: Sequence[Json]) -> list[Json]:
    """And those that items of the conversation have brought since, the last one of each name."""
    known, added = set(offers(tools)), []
    for tool in reversed(more):
        names = set(offers([tool]))
        if not names & known:
            known |= names
            added.append(tool)
    return [*tools, *reversed(added)]


def offers(tools: Iterable[Json]) -> dict[str, Offer]:
    """From the model's names to the tools that `read_tools` has read."""
    return {offer.told: offer for tool in tools for offer in _each(tool)}


def check_names(tools: Iterable[Json]) -> None:
    """Raises InvalidRequest where the model could not tell two of them apart."""
    seen: set[str] = set()
    for tool in tools:
        for offer in _each(tool):
            if offer.told in seen:
                raise InvalidRequest(f"two tools are called '{offer.told[:80]}'", param="tools")
            seen.add(offer.told)


def read_choice(
    fields: Fields, offered: Mapping[str, Offer]
) -> tuple[str | Json, tuple[Json, ...], ToolChoice]:
    """`tool_choice` as the answer repeats it, the tools that it leaves, and what it demands."""
    parallel = fields.flag("parallel_tool_calls") is not False
    choice = fields.get("tool_choice")
    if choice is None or isinstance(choice, str):
        return _simple(choice or "auto", offered, parallel)
    wanted = fields.fields("tool_choice")
    assert wanted is not None
    kind = wanted.text("type")
    if kind == "allowed_tools":
        demanded = _mode(wanted) == "required"
        known = _by_name(offered)
        chosen = [_known(tool, known) for tool in wanted.each("tools") if not _hosted(tool)]
    elif kind in ("function", "custom"):
        demanded, chosen = True, [_known(wanted, _by_name(offered))]
    else:
        raise InvalidRequest(
            "tool_choice.type must be function, custom or allowed_tools", param="tool_choice.type"
        )
    if demanded and not chosen:
        raise _needs_tools()
    names = tuple(dict.fromkeys(offer.told for offer in chosen)) if demanded else ()
    left = {offer.told: offer.template for offer in chosen}
    return choice, tuple(left.values()), ToolChoice(demanded, names, parallel)


def _simple(
    choice: str, offered: Mapping[str, Offer], parallel: bool
) -> tuple[str, tuple[Json, ...], ToolChoice]:
    if choice not in CHOICES:
        raise InvalidRequest(
            "tool_choice must be none, auto, required, or an object that names a function",
            param="tool_choice",
        )
    if choice == "required" and not offered:
        raise _needs_tools()
    tools = tuple(offer.template for offer in offered.values()) if choice != "none" else ()
    return choice, tools, ToolChoice(required=choice == "required", parallel=parallel)


def _needs_tools() -> InvalidRequest:
    return InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")


def _mode(choice: Fields) -> str:
    mode = choice.text("mode")
    if mode not in ("auto", "required"):
        raise InvalidRequest("tool_choice.mode must be auto or required", param=choice.path("mode"))
    return mode


def _by_name(offered: Mapping[str, Offer]) -> dict[tuple[str, str | None], Offer]:
    """By the client's name and namespace; and by its name alone, where the first one has it."""
    found: dict[tuple[str, str | None], Offer] = {}
    for offer in offered.values():
        found.setdefault((offer.name, None), offer)
        found[offer.name, offer.namespace] = offer
    return found


def _known(choice: Fields, known: Mapping[tuple[str, str | None], Offer]) -> Offer:
    name = required(choice, "name")
    offer = known.get((name, choice.text("namespace")))
    if offer is None:
        raise InvalidRequest(
            f"tool_choice names '{name[:80]}', which is not among the tools", param="tool_choice"
        )
    return offer


def _hosted(fields: Fields) -> bool:
    return fields.text("type") in HOSTED


def _tool(fields: Fields) -> Json:
    match fields.text("type"):
        case "function":
            return _function(fields)
        case "custom":
            return _custom(fields)
        case "namespace":
            return _namespace(fields)
        case _:
            raise _not_here(fields)


def _function(fields: Fields) -> Json:
    return {
        "type": "function",
        "name": required(fields, "name"),
        "description": fields.text("description"),
        "parameters": fields.mapping("parameters"),
        "strict": fields.flag("strict"),
    }


def _custom(fields: Fields) -> Json:
    return {
        "type": "custom",
        "name": required(fields, "name"),
        "description": fields.text("description"),
        "format": _format(fields.fields("format")),
    }


def _format(form: Fields | None) -> Json:
    """Of what a custom tool takes. A grammar is told to the model, which is not held to it."""
    kind = form.text("type") if form is not None else "text"
    if form is None or kind == "text":
        return {"type": "text"}
    if kind != "grammar":
        raise InvalidRequest("a custom tool's format is text or grammar", param=form.path("type"))
    syntax = form.text("syntax")
    if syntax not in SYNTAXES:
        raise InvalidRequest("a grammar's syntax is lark or regex", param=form.path("syntax"))
    return {"type": "grammar", "syntax": syntax, "definition": required(form, "definition")}


def _namespace(fields: Fields) -> Json:
    return {
        "type": "namespace",
        "name": required(fields, "name"),
        "description": fields.text("description") or "",
        "tools": [_inner(tool) for tool in fields.each("tools")],
    }


def _inner(fields: Fields) -> Json:
    if fields.text("type") not in ("function", "custom"):
        raise _not_here(fields)
    return _tool(fields)


def _not_here(fields: Fields) -> InvalidRequest:
    kind = fields.text("type")
    if kind is None:
        return fields.wrong("type", "string")
    return UnsupportedFeature(
        f"tools of type {kind[:80]} are not offered: function, custom and namespace are",
        param=fields.path("type"),
    )


def _each(tool: Json) -> Iterator[Offer]:
    if tool["type"] == "namespace":
        for inner in tool["tools"]:
            yield _offer(inner, tool["name"])
    else:
        yield _offer(tool, "")


def _offer(tool: Json, namespace: str) -> Offer:
    told, custom = told_name(tool["name"], namespace), tool["type"] == "custom"
    function: Json = {"name": told}
    description = _described(tool)
    if description:
        function["description"] = description
    if custom:
        function["parameters"] = _ANY_TEXT
    elif tool["parameters"] is not None:
        function["parameters"] = tool["parameters"]
    template = {"type": "function", "function": function}
    return Offer(told, tool["name"], namespace, custom, template)


def _described(tool: Json) -> str:
    said = tool["description"] or ""
    form = tool.get("format") or {}
    if form.get("type") != "grammar":
        return said
    grammar = f"The input has to match this {form['syntax']} grammar:\n{form['definition']}"
    return f"{said}\n\n{grammar}" if said else grammar


def told_name(name: str, namespace: str) -> str:
    """What the model calls a tool of a namespace: both names, with `__` between them."""
    if not namespace:
        return name
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"
