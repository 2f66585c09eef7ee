"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.events import (
    Completion,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call, to_json
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.choices import choices_of, read_count
from mlxd.dialects.openai.efforts import read_effort
from mlxd.dialects.openai.formats import format_names
from mlxd.dialects.openai.logprobs import entry_of
from mlxd.dialects.openai.messages import MessageReader
from mlxd.dialects.openai.parameters import limited, read_request, stream_options
from mlxd.dialects.openai.stream import ChunkEncoder, EventCodec, envelope_of, whole
from mlxd.dialects.openai.tools import old_form, with_tools
from mlxd.dialects.tool_calls import tool_call_id

MOST_LOGPROBS = 20


class ChatCodec(EventCodec):
    """OpenAI's chat completions."""

    path = "/v1/chat/completions"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields, request = read_request(body)
        _refuse_audio(fields)
        request = _with_thinking(fields, _with_conversation(fields, request))
        request = limited(request, _max_tokens(fields))
        if (logprobs := _logprobs_asked(fields)) is not None:
            request = replace(request, logprobs=logprobs)
        first, *more = choices_of(request, read_count(fields))
        return Call(
            id=id,
            received=now,
            action="generate",
            request=first,
            more=tuple(more),
            choices=1 + len(more),
            service_tier="default" if fields.text("service_tier") else "",
            old_functions=old_form(fields),
            names=format_names(fields),
            **stream_options(fields),
        )

    def encoder(self, call: Call) -> ChunkEncoder:
        deltas = [ChatDeltas(call, index) for index in range(len(call.requests))]
        return ChunkEncoder(call, _envelope(call, "chat.completion.chunk"), deltas)

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        choices = [_whole_choice(call, index, one) for index, one in enumerate(completions)]
        return whole(call, _envelope(call, "chat.completion"), choices, completions)


class ChatDeltas:
    """What the chunks of one choice hold."""

    def __init__(self, call: Call, index: int) -> None:
        self._call = call
        self._index = index
        self._calls = 0

    def opening(self, first: GenerationEvent) -> Json:
        """Empty content begins a text, which an answer that thinks or calls first may never have:
        the AI SDK would show one that says nothing.
        """
        silent = isinstance(first, ReasoningDelta | ToolCall)
        return self._choice({"role": "assistant", "content": None if silent else ""})

    def text(self, text: str, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        return self._choice({"content": text}, logprobs)

    def other(self, event: GenerationEvent) -> Json | None:
        match event:
            case ReasoningDelta(text, logprobs):
                return self._choice(_reasoning(text), logprobs)
            case ToolCall():
                return self._called(event)
            case Finished():
                reason = _finish_reason(self._call, event, called=self._calls > 0)
                return self._choice({}) | {"finish_reason": reason}
            case _:
                return None

    def _called(self, event: ToolCall) -> Json | None:
        number, self._calls = self._calls, self._calls + 1
        if self._call.old_functions:
            return None if number else self._choice({"function_call": _function(event)})
        piece = {"index": number} | _tool_call(self._call, self._index, number, event)
        return self._choice({"tool_calls": [piece]})

    def _choice(self, delta: Json, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        entries = _logprobs(self._call, logprobs) if logprobs else None
        return {"index": self._index, "delta": delta, "logprobs": entries, "finish_reason": None}


def _envelope(call: Call, object: str) -> Json:
    return envelope_of(call, f"chatcmpl-{call.id}", object)


def _whole_choice(call: Call, index: int, completion: Completion) -> Json:
    called = bool(completion.tool_calls)
    message: Json = {
        "role": "assistant",
        "content": None if called and not completion.text else completion.text,
        "refusal": None,
    }
    message |= _reasoning(completion.reasoning)
    if called:
        message |= _calls(call, index, completion.tool_calls)
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(call, completion.logprobs),
        "finish_reason": _finish_reason(call, completion.finished, called=called),
    }


def _refuse_audio(fields: Fields) -> None:
    if fields.get("audio") or "audio" in (fields.array("modalities") or ()):
        raise UnsupportedFeature("audio output is not offered", param="modalities")


def _with_conversation(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    reader = MessageReader()
    messages = tuple(reader.read(message) for message in fields.each("messages"))
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    return with_tools(fields, replace(request, messages=messages))


def _with_thinking(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    """`reasoning_effort` over `reasoning.effort` over the template's own switch."""
    options = dict(fields.mapping("chat_template_kwargs") or {})
    think = read_effort(fields, "reasoning_effort")
    reasoning = fields.fields("reasoning")
    if think is None and reasoning is not None:
        think = read_effort(reasoning, "effort")
    if think is None and isinstance(options.get("enable_thinking"), bool):
        think = options["enable_thinking"]
    if think is None and not options:
        return request
    return replace(request, think=think, template_options=options)


def _max_tokens(fields: Fields) -> int | None:
    old = fields.integer("max_tokens", low=1)
    new = fields.integer("max_completion_tokens", low=1)
    return old if new is None else new


def _logprobs_asked(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs", low=0, high=MOST_LOGPROBS) or 0
    return top if fields.flag("logprobs") else None


def _reasoning(text: str) -> Json:
    """Both names that clients look for."""
    return {"reasoning": text, "reasoning_content": text} if text else {}


def _calls(call: Call, choice: int, made: list[ToolCall]) -> Json:
    if call.old_functions:
        return {"function_call": _function(made[0])}
    return {"tool_calls": [_tool_call(call, choice, *one) for one in enumerate(made)]}


def _tool_call(call: Call, choice: int, number: int, event: ToolCall) -> Json:
    known_by = f"{call.id}/{choice}" if choice else call.id
    id = tool_call_id(known_by, number)
    return {"id": id, "type": "function", "function": _function(event)}


def _function(event: ToolCall) -> Json:
    return {"name": event.name, "arguments": to_json(event.arguments).decode()}


def _finish_reason(call: Call, finished: Finished | None, *, called: bool) -> str:
    """An answer that was cut says so, whatever it called before: it may have gone on to more."""
    reason = finished.reason if finished else "stop"
    if not called or reason == "length":
        return reason
    return "function_call" if call.old_functions else "tool_calls"


def _logprobs(call: Call, entries: Iterable[TokenLogprob]) -> Json | None:
    if call.request.logprobs is None:
        return None
    return {"content": [entry_of(entry) for entry in entries], "refusal": None}
