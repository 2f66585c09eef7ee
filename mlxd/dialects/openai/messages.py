"""OpenAI's conversations -> mlxd's."""

from __future__ import annotations

from dataclasses import replace

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.request import CalledTool, Message
from mlxd.dialects.arguments import Arguments
from mlxd.dialects.fields import Fields
from mlxd.dialects.media import unread
from mlxd.dialects.openai.errors import required

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_OTHER_MEDIA = ("image_url", "input_audio", "file", "image", "audio", "video_url", "audio_url")


class MessageReader:
    """Reads one conversation in order: a tool's answer finds the name of what was called."""

    def __init__(self) -> None:
        self._tool_names: dict[str, str] = {}
        self._arguments = Arguments()

    def read(self, fields: Fields) -> Message:
        role = fields.text("role")
        if role not in ROLES:
            raise InvalidRequest(
                f"Invalid value for '{fields.path('role')}': expected one of {', '.join(ROLES)}.",
                param=fields.path("role"),
            )
        if role == "assistant":
            return self._assistant(fields)
        by_tool = ROLES[role] == "tool"
        message = Message(role=ROLES[role], content=_content(fields, by_tool=by_tool))
        if role == "tool":
            call_id = required(fields, "tool_call_id")
            name = fields.text("name") or self._tool_names.get(call_id, "")
            return replace(message, tool_call_id=call_id, tool_name=name)
        if role == "function":
            return replace(message, tool_name=required(fields, "name"))
        return message

    def _assistant(self, fields: Fields) -> Message:
        calls = [self._called_tool(call) for call in fields.each("tool_calls")]
        old_call = fields.fields("function_call")
        if old_call is not None:
            calls.append(self._called_function(old_call, id=""))
        refusal = fields.text("refusal")
        thinking = fields.text("reasoning_content") or fields.text("reasoning") or ""
        silent = fields.get("content") is None and (calls or thinking or refusal is not None)
        return Message(
            role="assistant",
            content=refusal or "" if silent else _content(fields),
            thinking=thinking,
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
        return CalledTool(
            name=required(fields, "name"),
            arguments=self._arguments.read(fields.text("arguments"), fields.path("arguments")),
            id=id,
        )


def _content(fields: Fields, *, by_tool: bool = False) -> str:
    value = fields.get("content")
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.wrong("content", "string or array of parts")
    return "\n".join(_part(part, by_tool=by_tool) for part in fields.each("content"))


def _part(fields: Fields, *, by_tool: bool) -> str:
    kind = fields.text("type")
    if kind in _OTHER_MEDIA:
        if by_tool:
            return unread(kind)
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
