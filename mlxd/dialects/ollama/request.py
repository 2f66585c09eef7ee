"""The bodies of /api/generate and /api/chat -> `Call`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import msgspec

from mlxd.core.errors import InvalidRequest, ModelNotFound, UnsupportedFeature
from mlxd.core.request import CalledTool, GenerationRequest, Message
from mlxd.dialects.arguments import Arguments
from mlxd.dialects.base import Action, Call
from mlxd.dialects.fields import Fields, FoldedFields, Json, kind_of
from mlxd.dialects.keep_alive import keep_alive
from mlxd.dialects.ollama.options import FALLBACK, positive, read_options
from mlxd.dialects.ollama.prompt import with_prompt
from mlxd.dialects.standing import priority, user

ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high", "max")
MOST_LOGPROBS = 20
_OF_FUNCTIONS = ("name", "description", "parameters")


def parse_generate(body: Json, *, id: str, now: float) -> Call:
    """Raises InvalidRequest, and ModelNotFound when no model and no category is named."""
    fields = FoldedFields(body, complain)
    request = _common(fields)
    category = fields.text("category") or ""
    prompt = fields.text("prompt") or ""
    if not request.model and not category:
        raise ModelNotFound("")
    _refuse_images(fields, request.model)
    request = _with_old_names(fields, request)
    request = with_prompt(fields, request, prompt)
    action = "generate" if prompt or request.suffix else idle_action(request)
    return Call(id=id, received=now, action=action, request=request, category=category)


def parse_chat(body: Json, *, id: str, now: float) -> Call:
    """Raises InvalidRequest."""
    fields = FoldedFields(body, complain)
    request = _common(fields)
    if not request.model:
        raise InvalidRequest("model is required", param="model")
    messages = read_messages(fields, request.model)
    tools = tuple(_tool(tool) for tool in fields.each("tools"))
    request = replace(request, messages=messages, tools=tools)
    action = "generate" if messages else idle_action(request)
    return Call(id=id, received=now, action=action, request=request)


class _Surface(msgspec.Struct):
    """As much of a body as says that something is asked."""

    prompt: str = ""
    messages: list[msgspec.Raw] = []


def surely_asks(field: Literal["prompt", "messages"], body: bytes) -> bool:
    """Whether a body asks for an answer to `field`, as far as a glance tells: false for one that is
    to load a model, or cannot be read, and for some that do ask.
    """
    try:
        surface = _surface(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return bool(getattr(surface, field)) and b"_debug_render_only" not in body.lower()


_surface = msgspec.json.Decoder(_Surface).decode


def _common(fields: Fields) -> GenerationRequest:
    """What both endpoints read alike; the prompt is still missing."""
    options = read_options(fields.mapping("options") or {})
    fields.flag("truncate")
    fields.flag("shift")
    stream = fields.flag("stream")
    rendered = fields.flag("_debug_render_only") is True
    return GenerationRequest(
        model=fields.text("model") or "",
        want="prompt" if rendered else "answer",
        think=_think(fields),
        think_or_refuse=True,
        format=_format(fields),
        max_tokens=options.max_tokens,
        stop=options.stop,
        sampling=options.sampling,
        fallback=FALLBACK,
        logprobs=_logprobs(fields),
        keep_alive=keep_alive(fields),
        priority=priority(fields),
        user=user(fields, "user"),
        stream=stream is not False and not rendered,
    )


def idle_action(request: GenerationRequest) -> Action:
    """Of a request that says nothing."""
    return "unload" if request.keep_alive == 0 else "load"


def _with_old_names(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    """mlxd's own top-level fields, for what `options` leaves open."""
    max_tokens = positive(fields.integer("max_tokens", truncate=True))
    temperature = fields.number("temperature", low=0.0, high=100.0)
    sampling = request.sampling
    if sampling.temperature is None:
        sampling = replace(sampling, temperature=temperature)
    return replace(request, max_tokens=request.max_tokens or max_tokens, sampling=sampling)


def _refuse_images(fields: Fields, model: str) -> None:
    if fields.texts("images"):
        raise UnsupportedFeature(f'"{model}" does not support images', param=fields.path("images"))


def read_messages(fields: Fields, model: str) -> tuple[Message, ...]:
    """The turns of a conversation. Raises InvalidRequest."""
    arguments = Arguments()
    return tuple(_message(message, model, arguments) for message in fields.each("messages"))


def _message(fields: Fields, model: str, arguments: Arguments) -> Message:
    role = (fields.text("role") or "").lower()
    if role not in ROLES:
        raise InvalidRequest(
            f"{fields.path('role')} must be one of {', '.join(ROLES)}", param=fields.path("role")
        )
    _refuse_images(fields, model)
    return Message(
        role=role,
        content=fields.text("content") or "",
        thinking=fields.text("thinking") or "",
        tool_calls=tuple(_called_tool(call, arguments) for call in fields.each("tool_calls")),
        tool_name=fields.text("tool_name") or "",
        tool_call_id=fields.text("tool_call_id") or "",
    )


def _called_tool(fields: Fields, arguments: Arguments) -> CalledTool:
    function = fields.fields("function")
    if function is None:
        raise fields.wrong("function", "object")
    return CalledTool(
        name=_name(function),
        arguments=arguments.read(function.get("arguments"), function.path("arguments")),
        id=fields.text("id") or "",
    )


def _tool(fields: Fields) -> Json:
    if fields.text("type") not in (None, "", "function"):
        raise InvalidRequest(f'{fields.path("type")} must be "function"', param=fields.path("type"))
    function = fields.fields("function")
    if function is None:
        raise fields.wrong("function", "object")
    _name(function)
    function.text("description")
    function.mapping("parameters")
    return {"type": "function", "function": _spelled(fields.mapping("function") or {})}


def _spelled(function: Json) -> Json:
    """As templates look for it: a client may write its fields in any case."""
    names = {name.lower(): name for name in function} | {name: name for name in function}
    meant = {names[name]: name for name in _OF_FUNCTIONS if name in names}
    return {meant.get(name, name): value for name, value in function.items()}


def _name(function: Fields) -> str:
    name = function.text("name")
    if not name:
        raise function.wrong("name", "non-empty string")
    return name


def _think(fields: Fields) -> bool | str | None:
    value = fields.get("think")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or (isinstance(value, str) and value in EFFORTS):
        return value
    raise InvalidRequest(
        f'invalid think value: {_shown(value)} (must be "low", "medium", "high", "max", true, or '
        "false)",
        param="think",
    )


def _format(fields: Fields) -> str | Json | None:
    value = fields.get("format")
    if value is None or value == "":
        return None
    if value == "json":
        return "json"
    if isinstance(value, dict):
        return value
    raise InvalidRequest(
        f'invalid format: {_shown(value)}; expected "json" or a valid JSON Schema object',
        param="format",
    )


def _logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs") or 0
    if not 0 <= top <= MOST_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs must be between 0 and {MOST_LOGPROBS}", param="top_logprobs"
        )
    return top if fields.flag("logprobs") else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:100] + "..."


def complain(path: str, expected: str, found: Any) -> str:
    """Of a field of the wrong type."""
    return f"{path} must be of type {expected}, not {kind_of(found)}"
