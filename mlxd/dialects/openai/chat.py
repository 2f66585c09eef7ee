"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mlxd.core.errors import InvalidRequest, MlxdError, UnsupportedFeature
from mlxd.core.events import (
    Completion,
    Echo,
    Embedding,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call, to_json
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.errors import render_error
from mlxd.dialects.openai.logprobs import entry_of
from mlxd.dialects.openai.messages import MessageReader, choose_tools, read_tool
from mlxd.dialects.openai.parameters import include_usage, read_request
from mlxd.dialects.openai.stream import (
    CONTENT_TYPE,
    HEARTBEAT,
    ChunkEncoder,
    envelope_of,
    usage_of,
)
from mlxd.dialects.tool_calls import tool_call_id

_MOST_LOGPROBS = 20
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "ultra": "max",
    "max": "max",
}


class ChatCodec:
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"
    content_type = CONTENT_TYPE
    heartbeat = HEARTBEAT

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields, request = read_request(body)
        _refuse_unoffered(fields)
        request = _with_conversation(fields, request)
        request = _with_thinking(fields, request)
        request = replace(
            request,
            max_tokens=_max_tokens(fields),
            format=_format(fields),
            logprobs=_logprobs_asked(fields),
        )
        return Call(
            id=id,
            received=now,
            action="generate",
            request=request,
            include_usage=include_usage(fields),
        )

    def encoder(self, call: Call) -> ChatEncoder:
        return ChatEncoder(call, _envelope(call, "chat.completion.chunk"))

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        (completion,) = completions
        finished = completion.finished
        calls = [_tool_call(call, index, c) for index, c in enumerate(completion.tool_calls)]
        message: Json = {
            "role": "assistant",
            "content": None if calls and not completion.text else completion.text,
            "refusal": None,
        }
        message |= _reasoning(completion.reasoning)
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(call, completion.logprobs),
            "finish_reason": _finish_reason(finished, bool(calls)),
        }
        usage = usage_of(finished, reasoned=bool(completion.reasoning))
        return _envelope(call, "chat.completion") | {"choices": [choice], "usage": usage}

    def render_action(self, call: Call, now: float) -> Json:
        """This API can ask for neither load nor unload."""
        return self.render(call, [Completion()], now)

    def render_error(self, error: MlxdError) -> Json:
        return render_error(error)


class ChatEncoder(ChunkEncoder):
    """A stream of chat.completion.chunk objects."""

    def __init__(self, call: Call, envelope: Json) -> None:
        super().__init__(call, envelope)
        self._tool_calls = 0
        self._reasoned = False

    def _open(self) -> bytes:
        return self._chunk(self._choice({"role": "assistant", "content": ""}))

    def _text_choice(self, text: str, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        return self._choice({"content": text}, logprobs)

    def _choice(self, delta: Json, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        entries = _logprobs(self._call, logprobs) if logprobs else None
        return {"index": 0, "delta": delta, "logprobs": entries, "finish_reason": None}

    def _other(self, event: GenerationEvent) -> bytes:
        match event:
            case Started() | Echo() | Embedding():
                return b""
            case TextDelta(text, logprobs):
                return self._chunk(self._text_choice(text, logprobs))
            case ReasoningDelta(text, logprobs):
                self._reasoned = self._reasoned or bool(text)
                return self._chunk(self._choice(_reasoning(text), logprobs))
            case ToolCall():
                index, self._tool_calls = self._tool_calls, self._tool_calls + 1
                piece = {"index": index} | _tool_call(self._call, index, event)
                return self._chunk(self._choice({"tool_calls": [piece]}))
            case Finished():
                reason = _finish_reason(event, self._tool_calls > 0)
                last = self._choice({}) | {"finish_reason": reason}
                return self._end(last, usage_of(event, reasoned=self._reasoned))


def _envelope(call: Call, object: str) -> Json:
    return envelope_of(call, f"chatcmpl-{call.id}", object)


def _refuse_unoffered(fields: Fields) -> None:
    for name in ("functions", "function_call"):
        if fields.get(name):
            raise UnsupportedFeature(f"{name} is not offered: use tools", param=name)
    if fields.get("audio") or "audio" in (fields.array("modalities") or ()):
        raise UnsupportedFeature("audio output is not offered", param="modalities")


def _with_conversation(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    reader = MessageReader()
    messages = tuple(reader.read(message) for message in fields.each("messages"))
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    tools = choose_tools(fields, tuple(read_tool(tool) for tool in fields.each("tools")))
    fields.flag("parallel_tool_calls")
    return replace(request, messages=messages, tools=tools)


def _with_thinking(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    """`reasoning_effort` over `reasoning.effort` over the template's own switch."""
    options = dict(fields.mapping("chat_template_kwargs") or {})
    think = _effort(fields, "reasoning_effort")
    reasoning = fields.fields("reasoning")
    if think is None and reasoning is not None:
        think = _effort(reasoning, "effort")
    if think is None and isinstance(options.get("enable_thinking"), bool):
        think = options["enable_thinking"]
    return replace(request, think=think, template_options=options)


def _effort(fields: Fields, name: str) -> bool | str | None:
    effort = fields.text(name)
    if effort is None:
        return None
    if effort not in _EFFORTS:
        path = fields.path(name)
        raise InvalidRequest(f"{path} must be one of {', '.join(_EFFORTS)}", param=path)
    return _EFFORTS[effort]


def _max_tokens(fields: Fields) -> int | None:
    old = fields.integer("max_tokens", low=1)
    new = fields.integer("max_completion_tokens", low=1)
    return old if new is None else new


def _format(fields: Fields) -> str | Json | None:
    wanted = fields.fields("response_format")
    if wanted is None:
        return None
    match wanted.text("type"):
        case "text":
            return None
        case "json_object":
            return "json"
        case "json_schema":
            described = wanted.fields("json_schema")
            if described is None:
                raise wanted.wrong("json_schema", "object")
            schema = described.mapping("schema")
            return "json" if schema is None else schema
        case _:
            pass
    raise InvalidRequest(
        "response_format.type must be text, json_object or json_schema",
        param="response_format.type",
    )


def _logprobs_asked(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs", low=0, high=_MOST_LOGPROBS) or 0
    return top if fields.flag("logprobs") else None


def _reasoning(text: str) -> Json:
    """Both names that clients look for."""
    return {"reasoning": text, "reasoning_content": text} if text else {}


def _tool_call(call: Call, index: int, event: ToolCall) -> Json:
    function = {"name": event.name, "arguments": to_json(event.arguments).decode()}
    return {"id": tool_call_id(call.id, index), "type": "function", "function": function}


def _finish_reason(finished: Finished | None, called: bool) -> str:
    if called:
        return "tool_calls"
    return finished.reason if finished else "stop"


def _logprobs(call: Call, entries: Iterable[TokenLogprob]) -> Json | None:
    if call.request.logprobs is None:
        return None
    return {"content": [entry_of(entry) for entry in entries], "refusal": None}
