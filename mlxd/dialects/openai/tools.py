"""OpenAI's tools, in the present form and in the old one, and what the model must do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import GenerationRequest, ToolChoice
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.errors import required


@dataclass(frozen=True, slots=True)
class _Offer:
    """The tools that the model is shown, and what it must do with them."""

    tools: tuple[Json, ...] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)


_NOTHING = _Offer()


def with_tools(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    offer = _old_offer(fields) if old_form(fields) else _offer(fields)
    if fields.flag("parallel_tool_calls") is False and offer.tools:
        offer = replace(offer, choice=replace(offer.choice, parallel=False))
    if offer == _NOTHING:
        return request
    return replace(request, tools=offer.tools, tool_choice=offer.choice)


def old_form(fields: Fields) -> bool:
    """Whether `functions` are offered: then a call is told as `function_call`."""
    offered = bool(fields.array("functions"))
    if offered and fields.array("tools"):
        raise InvalidRequest("functions and tools cannot both be given", param="functions")
    return offered


def _offer(fields: Fields) -> _Offer:
    if fields.get("function_call") not in (None, "none", "auto"):
        raise InvalidRequest("function_call needs functions", param="function_call")
    tools = tuple(_tool(tool) for tool in fields.each("tools"))
    choice = fields.get("tool_choice")
    if choice is None or choice == "auto":
        return _Offer(tools)
    if choice == "none":
        return _Offer()
    if choice == "required":
        if not tools:
            raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
        return _Offer(tools, ToolChoice(required=True))
    if isinstance(choice, str):
        raise InvalidRequest(
            "tool_choice must be none, auto, required, or an object that names a function",
            param="tool_choice",
        )
    return _chosen(fields, tools)


def _chosen(fields: Fields, tools: tuple[Json, ...]) -> _Offer:
    choice = fields.fields("tool_choice")
    assert choice is not None
    match choice.get("type"):
        case "function":
            return _only([_function_name(choice)], tools, "tool_choice", demanded=True)
        case "allowed_tools":
            return _allowed(choice, tools)
        case "custom":
            raise UnsupportedFeature("only tools of type function are offered", param="tool_choice")
        case _:
            pass
    raise InvalidRequest(
        "tool_choice.type must be function or allowed_tools", param="tool_choice.type"
    )


def _allowed(choice: Fields, tools: tuple[Json, ...]) -> _Offer:
    allowed = choice.fields("allowed_tools")
    if allowed is None:
        raise choice.wrong("allowed_tools", "object")
    mode = allowed.text("mode")
    if mode not in (None, "auto", "required"):
        raise InvalidRequest(
            f"{allowed.path('mode')} must be auto or required", param=allowed.path("mode")
        )
    names = [_function_name(tool) for tool in allowed.each("tools")]
    if not names:
        raise InvalidRequest(
            f"{allowed.path('tools')} must not be empty", param=allowed.path("tools")
        )
    return _only(names, tools, "tool_choice", demanded=mode == "required")


def _only(names: Sequence[str], tools: tuple[Json, ...], param: str, *, demanded: bool) -> _Offer:
    """Of the tools, those named."""
    known = {tool["function"]["name"] for tool in tools}
    for name in names:
        if name not in known:
            raise InvalidRequest(
                f"{param} names '{name[:80]}', which is not among the tools", param=param
            )
    wanted = frozenset(names)
    left = tuple(tool for tool in tools if tool["function"]["name"] in wanted)
    return _Offer(left, ToolChoice(required=demanded, names=tuple(dict.fromkeys(names))))


def _old_offer(fields: Fields) -> _Offer:
    """`functions` and `function_call`: one call at most."""
    tools = tuple(_checked(function) for function in fields.each("functions"))
    choice = fields.get("function_call")
    offer = _Offer(tools)
    if choice == "none":
        return _Offer()
    if isinstance(choice, str) and choice != "auto":
        raise InvalidRequest(
            "function_call must be none, auto, or an object that names a function",
            param="function_call",
        )
    if choice not in (None, "auto"):
        named = fields.fields("function_call")
        assert named is not None
        offer = _only([required(named, "name")], tools, "function_call", demanded=True)
    return replace(offer, choice=replace(offer.choice, parallel=False))


def _tool(fields: Fields) -> Json:
    """One tool, as chat templates want it."""
    if fields.text("type") not in (None, "function"):
        raise UnsupportedFeature(
            "only tools of type function are offered", param=fields.path("type")
        )
    function = fields.fields("function")
    if function is None:
        raise fields.wrong("function", "object")
    return _checked(function)


def _checked(function: Fields) -> Json:
    required(function, "name")
    function.text("description")
    function.mapping("parameters")
    return {"type": "function", "function": function.values}


def _function_name(fields: Fields) -> str:
    function = fields.fields("function")
    if function is None:
        raise fields.wrong("function", "object")
    return required(function, "name")
