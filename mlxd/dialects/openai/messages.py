"""OpenAI's conversations and tools -> mlxd's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import CalledTool, Message
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.numbers import levels_of, shorten_integers

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_OTHER_MEDIA = ("image_url", "input_audio", "file", "image", "audio", "video_url", "audio_url")
_MOST_EMBEDDED_VALUES = 200_000
_MOST_EMBEDDED_LEVELS = 64
_LONG_NUMBER = re.compile("[0-9]{19}")


class MessageReader:
    """Reads one conversation in order: a tool's answer finds the name of what was called."""

    def __init__(self) -> None:
        self._tool_names: dict[str, str] = {}
        self._embedded_values = 0

    def read(self, fields: Fields) -> Message:
        role = fields.text("role")
        if role not in _ROLES:
            raise InvalidRequest(
                f"Invalid value for '{fields.path('role')}': expected one of {', '.join(_ROLES)}.",
                param=fields.path("role"),
            )
        if role == "assistant":
            return self._assistant(fields)
        message = Message(role=_ROLES[role], content=_content(fields))
        if role == "tool":
            call_id = _required(fields, "tool_call_id")
            name = fields.text("name") or self._tool_names.get(call_id, "")
            return replace(message, tool_call_id=call_id, tool_name=name)
        if role == "function":
            return replace(message, tool_name=_required(fields, "name"))
        return message

    def _assistant(self, fields: Fields) -> Message:
        calls = [self._called_tool(call) for call in fields.each("tool_calls")]
        old_call = fields.fields("function_call")
        if old_call is not None:
            calls.append(self._called_function(old_call, id=""))
        silent = fields.get("content") is None and (calls or fields.text("refusal") is not None)
        return Message(
            role="assistant",
            content=fields.text("refusal") or "" if silent else _content(fields),
            thinking=fields.text("reasoning_content") or fields.text("reasoning") or "",
            tool_calls=tuple(calls),
        )

    def _called_tool(self, fields: Fields) -> CalledTool:
        if fields.text("type") not in (None, "function"):
            raise UnsupportedFeature(
                "only tool calls of type function are offered", param=fields.path("type")
            )
        function = fields.fields("function")
        if function is None:
            raise fields.wrong("function", "object")
        call = self._called_function(function, id=fields.text("id") or "")
        self._tool_names[call.id] = call.name
        return call

    def _called_function(self, fields: Fields, id: str) -> CalledTool:
        return CalledTool(name=_required(fields, "name"), arguments=self._arguments(fields), id=id)

    def _arguments(self, fields: Fields) -> Json:
        """JSON within JSON: counted over the whole conversation before it is parsed."""
        text = fields.text("arguments") or "{}"
        self._embedded_values += sum(map(text.count, ",:[{"))
        if self._embedded_values > _MOST_EMBEDDED_VALUES:
            raise InvalidRequest(
                f"too many values in the arguments of tool calls; at most {_MOST_EMBEDDED_VALUES} "
                "are read",
                param=fields.path("arguments"),
            )
        try:
            return _decode_object(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InvalidRequest(
                f"Invalid value for '{fields.path('arguments')}': expected a JSON object as a "
                "string.",
                param=fields.path("arguments"),
            ) from error


def read_tool(fields: Fields) -> Json:
    """One tool, as chat templates want it."""
    if fields.text("type") not in (None, "function"):
        raise UnsupportedFeature(
            "only tools of type function are offered", param=fields.path("type")
        )
    function = fields.fields("function")
    if function is None:
        raise fields.wrong("function", "object")
    _required(function, "name")
    function.text("description")
    function.mapping("parameters")
    return {"type": "function", "function": fields.get("function")}


def choose_tools(fields: Fields, tools: tuple[Json, ...]) -> tuple[Json, ...]:
    """The tools that `tool_choice` leaves. `required` is offered to the model, not enforced."""
    choice = fields.get("tool_choice")
    if choice is None or choice == "auto":
        return tools
    if choice == "none":
        return ()
    if choice == "required":
        if not tools:
            raise InvalidRequest("tool_choice 'required' needs tools", param="tool_choice")
        return tools
    names = _chosen_names(fields)
    known = {tool["function"]["name"] for tool in tools}
    if missing := sorted(names - known):
        raise InvalidRequest(
            f"tool_choice names '{missing[0]}', which is not among the tools", param="tool_choice"
        )
    return tuple(tool for tool in tools if tool["function"]["name"] in names)


def _chosen_names(fields: Fields) -> set[str]:
    if isinstance(fields.get("tool_choice"), str):
        raise InvalidRequest(
            "tool_choice must be none, auto, required, or an object that names a function",
            param="tool_choice",
        )
    choice = fields.fields("tool_choice")
    assert choice is not None
    if choice.get("type") == "function":
        return {_function_name(choice)}
    if choice.get("type") == "allowed_tools":
        allowed = choice.fields("allowed_tools")
        if allowed is None:
            raise choice.wrong("allowed_tools", "object")
        return {_function_name(tool) for tool in allowed.each("tools")}
    raise InvalidRequest(
        "tool_choice.type must be function or allowed_tools", param="tool_choice.type"
    )


def _function_name(fields: Fields) -> str:
    function = fields.fields("function")
    if function is None:
        raise fields.wrong("function", "object")
    return _required(function, "name")


def _content(fields: Fields) -> str:
    value = fields.get("content")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", "string or array of parts")
    return "\n".join(_part(part) for part in fields.each("content"))


def _part(fields: Fields) -> str:
    kind = fields.text("type")
    if kind in _OTHER_MEDIA:
        raise UnsupportedFeature(
            f"content of type {kind} is not offered: this model reads text only",
            param=fields.path("type"),
        )
    if kind not in ("text", "refusal"):
        raise InvalidRequest(
            f"Invalid value for '{fields.path('type')}': expected text.", param=fields.path("type")
        )
    text = fields.text(kind)
    if text is None:
        raise fields.wrong(kind, "string")
    return text


def _required(fields: Fields, name: str) -> str:
    value = fields.text(name)
    if not value:
        raise InvalidRequest(
            f"Missing required parameter: '{fields.path(name)}'.", param=fields.path(name)
        )
    return value


def _decode_object(text: str) -> Json:
    value: Json = msgspec.json.decode(text, type=dict[str, Any])
    if sum(1 for _ in levels_of(value)) > _MOST_EMBEDDED_LEVELS:
        raise RecursionError
    if _LONG_NUMBER.search(text):
        shorten_integers(value)
    return value
