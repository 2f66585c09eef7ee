"""Anthropic's stream: a message opens, its blocks open and close one by one, it ends."""

from __future__ import annotations

from typing import Literal

from mlxd.core.errors import MlxdError
from mlxd.core.events import (
    Burst,
    Echo,
    Embedding,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
)
from mlxd.dialects.anthropic.content import (
    Signature,
    message_of,
    stop_of,
    tells_thoughts,
    tool_use,
    usage_of,
)
from mlxd.dialects.anthropic.errors import render_error
from mlxd.dialects.base import Call, to_json
from mlxd.dialects.fields import Json

Kind = Literal["text", "thinking"]


def sse_event(data: Json) -> bytes:
    """One server-sent event, named after its type."""
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), to_json(data))


HEARTBEAT = sse_event({"type": "ping"})


class MessageEncoder:
    """One stream of events. A delta of text is the same bytes around the text each time."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._answered = call.request.want == "answer"
        self._tells_thoughts = tells_thoughts(call)
        self._started: Started | None = None
        self._begun = False
        self._index = -1
        self._open: Kind | None = None
        """The block that is open."""
        self._held: tuple[Kind, str] | None = None
        """White space, which opens a block only together with what follows it."""
        self._signature = Signature()
        self._calls = 0
        self._before = self._after = b""

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        records: list[bytes] = []
        for event in burst:
            goes_on = self._open == "text" and self._held is None
            if goes_on and type(event) is TextDelta and event.text:
                records += (self._before, to_json(event.text), self._after)
            else:
                records.append(self._other(event))
        return b"".join(records)

    def fail(self, error: MlxdError) -> bytes:
        return sse_event(render_error(error, self._call.request_id))

    def _other(self, event: GenerationEvent) -> bytes:
        """Anything but text that goes on."""
        match event:
            case Started():
                self._started = event
                return b""
            case Echo() | Embedding():
                return b""
            case TextDelta(text):
                return self._piece("text", text)
            case ReasoningDelta(text):
                return self._piece("thinking", text) if self._tells_thoughts else b""
            case ToolCall():
                return self._begin() + self._close() + self._tool_use(event)
            case Finished():
                return self._begin() + self._close() + self._end(event)

    def _begin(self) -> bytes:
        """Put off until there is something to say."""
        if self._begun:
            return b""
        self._begun = True
        message = message_of(self._call) | {"usage": usage_of(self._call, self._started)}
        return sse_event({"type": "message_start", "message": message})

    def _piece(self, kind: Kind, text: str) -> bytes:
        if not text or not self._answered:
            return b""
        if self._open == kind:
            return self._delta(kind, text)
        if self._held is not None and self._held[0] == kind:
            text = self._held[1] + text
        if text.isspace():
            self._held = kind, text
            return b""
        return self._begin() + self._close() + self._opened(kind) + self._delta(kind, text)

    def _opened(self, kind: Kind) -> bytes:
        self._index += 1
        self._open = kind
        if kind == "thinking":
            self._signature = Signature()
            return self._start({"type": "thinking", "thinking": "", "signature": ""})
        # A delta of empty text holds its last `""` where the text goes.
        self._before, _, self._after = self._delta("text", "").rpartition(b'""')
        return self._start({"type": "text", "text": ""})

    def _delta(self, kind: Kind, text: str) -> bytes:
        self._held = None
        if kind == "thinking":
            self._signature.add(text)
        return self._change({"type": f"{kind}_delta", kind: text})

    def _close(self) -> bytes:
        """The open block, if there is one."""
        kind, self._open, self._held = self._open, None, None
        if kind is None:
            return b""
        if kind == "text":
            return self._stop()
        signature = {"type": "signature_delta", "signature": self._signature.text}
        return self._change(signature) + self._stop()

    def _tool_use(self, event: ToolCall) -> bytes:
        self._index += 1
        number, self._calls = self._calls, self._calls + 1
        arguments = to_json(event.arguments).decode()
        return (
            self._start(tool_use(self._call, number, event))
            + self._change({"type": "input_json_delta", "partial_json": arguments})
            + self._stop()
        )

    def _start(self, block: Json) -> bytes:
        return sse_event(
            {"type": "content_block_start", "index": self._index, "content_block": block}
        )

    def _change(self, delta: Json) -> bytes:
        return sse_event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _stop(self) -> bytes:
        return sse_event({"type": "content_block_stop", "index": self._index})

    def _end(self, finished: Finished) -> bytes:
        delta = stop_of(self._call, finished, called=self._calls > 0)
        last = {"type": "message_delta", "delta": delta, "usage": usage_of(self._call, finished)}
        return sse_event(last) + sse_event({"type": "message_stop"})
