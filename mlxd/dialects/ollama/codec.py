"""Ollama's answers: one JSON object per line, one line per event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from mlxd.core.errors import ContextExceeded, MlxdError
from mlxd.core.events import (
    Burst,
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
from mlxd.dialects.base import NDJSON, Call, logprob_of, to_json
from mlxd.dialects.fields import Json
from mlxd.dialects.ollama.request import parse_chat, parse_generate
from mlxd.dialects.tool_calls import tool_call_id

_TOO_LONG = "prompt too long; exceeded max context length: "
"""What agents look for: then they shorten the conversation and try again."""


class _Codec:
    """What both endpoints share; a subclass says where an answer's text stands in a record."""

    path: str
    content_type = NDJSON
    heartbeat = b""

    def body(self, text: str, thinking: str = "", tool_calls: list[Json] | None = None) -> Json:
        """The fields of a record that hold the answer."""
        raise NotImplementedError

    def encoder(self, call: Call) -> RecordEncoder:
        return RecordEncoder(call, self)

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        (completion,) = completions
        if call.request.want == "prompt":
            return _head(call, now) | self.body("") | _debug(completion.text)
        calls = [_tool_call(call, index, c) for index, c in enumerate(completion.tool_calls)]
        record = _head(call, now) | self.body(completion.text, completion.reasoning, calls)
        if call.request.logprobs is not None:
            record["logprobs"] = _logprobs(completion.logprobs)
        return record | _end(call, completion.started, completion.finished, now)

    def render_action(self, call: Call, now: float) -> Json:
        return _head(call, now) | self.body("") | {"done": True, "done_reason": call.action}

    def render_error(self, error: MlxdError) -> Json:
        words = error.explained()
        return {"error": _TOO_LONG + words if isinstance(error, ContextExceeded) else words}


class GenerateCodec(_Codec):
    """/api/generate."""

    path = "/api/generate"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        return parse_generate(body, id=id, now=now)

    def body(self, text: str, thinking: str = "", tool_calls: list[Json] | None = None) -> Json:
        return {"response": text} | _extras(thinking, tool_calls)


class ChatCodec(_Codec):
    """/api/chat."""

    path = "/api/chat"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        return parse_chat(body, id=id, now=now)

    def body(self, text: str, thinking: str = "", tool_calls: list[Json] | None = None) -> Json:
        message = {"role": "assistant", "content": text} | _extras(thinking, tool_calls)
        return {"message": message}


class RecordEncoder:
    """One stream of records. A record of plain text is the same bytes around the text each time."""

    def __init__(self, call: Call, codec: _Codec) -> None:
        self._call = call
        self._codec = codec
        self._started: Started | None = None
        self._tool_calls = 0
        self._second = -1
        self._second_head = b""
        # body("") ends in `""` and what closes it: the text goes between.
        before, _, after = to_json(codec.body("")).rpartition(b'""')
        self._text_before = b'Z",' + before.removeprefix(b"{")
        self._text_after = after.removesuffix(b"}") + b',"done":false}\n'

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        before, after = self._before(now), self._text_after
        records: list[bytes] = []
        for event in burst:
            if type(event) is TextDelta and not event.logprobs:
                records += (before, to_json(event.text), after)
            else:
                records.append(self._record(event, now))
        return b"".join(records)

    def fail(self, error: MlxdError) -> bytes:
        """With its code, which no header can carry any more; Ollama's clients pass it over."""
        return to_json(self._codec.render_error(error) | {"code": error.code}) + b"\n"

    def _before(self, now: float) -> bytes:
        """A text record up to its text; the date is made once a second."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_head = to_json(_head(self._call, second)).removesuffix(b'000000Z"}')
        return b"%b%06d%b" % (self._second_head, _microseconds(now), self._text_before)

    def _record(self, event: GenerationEvent, now: float) -> bytes:
        match event:
            case Started():
                self._started = event
                return b""
            case TextDelta(text, logprobs):
                return self._line(now, self._codec.body(text), logprobs)
            case ReasoningDelta(text, logprobs):
                return self._line(now, self._codec.body("", thinking=text), logprobs)
            case ToolCall():
                index, self._tool_calls = self._tool_calls, self._tool_calls + 1
                calls = [_tool_call(self._call, index, event)]
                return self._line(now, self._codec.body("", tool_calls=calls))
            case Echo() | Embedding():
                return b""
            case Finished():
                end = _end(self._call, self._started, event, now)
                return to_json(_head(self._call, now) | self._codec.body("") | end) + b"\n"

    def _line(self, now: float, body: Json, logprobs: Iterable[TokenLogprob] = ()) -> bytes:
        record = _head(self._call, now) | body
        if logprobs and self._call.request.logprobs is not None:
            record["logprobs"] = _logprobs(logprobs)
        return to_json(record | {"done": False}) + b"\n"


def timestamp(now: float) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    date = datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{date}.{_microseconds(now):06d}Z"


def _microseconds(now: float) -> int:
    """Those of its second that have passed."""
    return int((now - int(now)) * 1e6)


def _head(call: Call, now: float) -> Json:
    return {"model": call.request.model, "created_at": timestamp(now)}


def _extras(thinking: str, tool_calls: list[Json] | None) -> Json:
    extras: Json = {}
    if thinking:
        extras["thinking"] = thinking
    if tool_calls:
        extras["tool_calls"] = tool_calls
    return extras


def _tool_call(call: Call, index: int, event: ToolCall) -> Json:
    return {
        "id": tool_call_id(call.id, index),
        "function": {"index": index, "name": event.name, "arguments": event.arguments},
    }


def _logprobs(entries: Iterable[TokenLogprob]) -> list[Json]:
    return [_entry(entry) for entry in entries]


def _entry(entry: TokenLogprob) -> Json:
    shown = _alternative(entry.token, entry.logprob)
    if entry.top:
        shown["top_logprobs"] = [_alternative(token, logprob) for token, _, logprob in entry.top]
    return shown


def _alternative(token: str, logprob: float) -> Json:
    """`bytes` are those of the string as sent, not the token's own: so does Ollama."""
    return {"token": token, "logprob": logprob_of(logprob), "bytes": list(token.encode())}


def _end(call: Call, started: Started | None, finished: Finished | None, now: float) -> Json:
    """What the last record adds. Clients divide by durations, so none is 0."""
    reason: Literal["stop", "length"] = finished.reason if finished else "stop"
    counts: dict[str, Any] = {"done": True, "done_reason": reason}
    counts["total_duration"] = nanoseconds(now - call.received)
    counts["load_duration"] = nanoseconds(started.wait_seconds if started else 0.0)
    if finished:
        counts["prompt_eval_count"] = finished.prompt_tokens
        counts["prompt_eval_duration"] = nanoseconds(finished.prefill_seconds)
        counts["eval_count"] = finished.completion_tokens
        counts["eval_duration"] = nanoseconds(finished.decode_seconds)
        if finished.context:
            counts["context"] = finished.context
    return counts


def _debug(prompt: str) -> Json:
    """`_debug_render_only`: how the prompt reads, and nothing else."""
    return {"done": False, "_debug_info": {"rendered_template": prompt, "image_count": 0}}


def nanoseconds(seconds: float) -> int:
    """Of a duration, which is never 0."""
    return max(1, round(seconds * 1e9))
