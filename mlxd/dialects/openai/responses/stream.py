"""The stream of events about one response; the last of them holds the whole."""

from __future__ import annotations

from collections.abc import Iterable

from mlxd.core.errors import ContextExceeded, InvalidRequest, MlxdError, RateLimited
from mlxd.core.events import (
    Burst,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.dialects.base import Call, to_json
from mlxd.dialects.explaining import explanation
from mlxd.dialects.fields import Json
from mlxd.dialects.openai.errors import render_error, words_of
from mlxd.dialects.openai.logprobs import entry_of
from mlxd.dialects.openai.responses.items import response_id
from mlxd.dialects.openai.responses.output import Event, Said, Thought, called, events_of
from mlxd.dialects.openai.responses.tools import offers


class ResponsesEncoder:
    """One streamed response."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._settings: Json = call.about["settings"]
        self._offers = offers(self._settings["tools"])
        self._number = 0
        """Of the next event."""
        self._output: list[Json] = []
        """The items that are finished."""
        self._growing: Said | Thought | None = None
        self._early: list[Json] = []
        """Log-probabilities of text that is held back: they go with the next piece."""
        self._blank = ""
        """White space, which opens a message only together with what follows it: between two calls
        it would make two turns of one.
        """
        self.whole: Json | None = None
        """The response, once it is finished."""

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        return b"".join(piece for event in burst for piece in self._told(event, now))

    def fail(self, error: MlxdError) -> bytes:
        """Nothing changes by it: who is only refused for now is told the rest once it goes on."""
        number, output = self._number, list(self._output)
        if self._growing is not None:
            output.append(self._growing.item("incomplete"))
        failed = self._response("failed", output) | {
            "error": {"code": _code(error), "message": words_of(error)} | explanation(error)
        }
        told = [
            *self._begin(),
            self._event("error", _failure(error)),
            self._event("response.failed", {"response": failed}),
        ]
        self._number = number
        return b"".join(told)

    def _told(self, event: GenerationEvent, now: float) -> list[bytes]:
        match event:
            case TextDelta():
                return self._said(event)
            case ReasoningDelta():
                return self._thought(event)
            case ToolCall():
                return self._called(event)
            case Finished():
                return self._finished(event, now)
            case _:
                return []

    def _said(self, delta: TextDelta) -> list[bytes]:
        told: list[bytes] = []
        logprobs = self._early + self._entries(delta.logprobs)
        growing, text = self._growing, delta.text
        if not isinstance(growing, Said):
            text = self._blank + text
            if not text or text.isspace():
                self._early, self._blank = logprobs, text
                return told
            growing = Said(self._call.id, self._next_index())
            told = self._grow(growing)
        self._early, self._blank = [], ""
        if logprobs:
            return [*told, self._event(*growing.add_scored(text, logprobs))]
        return [*told, self._piece(growing, text)] if text else told

    def _thought(self, delta: ReasoningDelta) -> list[bytes]:
        told: list[bytes] = []
        growing = self._growing
        if not delta.text:
            return told
        self._blank = ""
        if not isinstance(growing, Thought):
            seals = self._call.about["sealed"]
            growing = Thought(self._call.id, self._next_index(), seals=seals)
            told = self._grow(growing)
        return [*told, self._piece(growing, delta.text)]

    def _called(self, event: ToolCall) -> list[bytes]:
        self._blank = ""
        index = self._next_index()
        ended = self._end_item()
        item, field = called(event, self._offers.get(event.name), self._call.id, index)
        self._output.append(item)
        return [*self._begin(), *ended, *self._events(events_of(item, field, index))]

    def _finished(self, event: Finished, now: float) -> list[bytes]:
        cut = event.reason == "length"
        status = "incomplete" if cut else "completed"
        told: list[bytes] = []
        if self._growing is None and not self._output:
            told = self._only_message()
        told = [*self._begin(), *told, *self._end_item(status)]
        whole = self._response(status, self._output) | {"usage": _usage(event)}
        if cut:
            whole["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            whole["completed_at"] = int(now)
        self.whole = whole
        return [*told, self._event(f"response.{status}", {"response": whole})]

    def _only_message(self) -> list[bytes]:
        """Of an answer that says nothing, or nothing but white space."""
        message, blank, logprobs = Said(self._call.id, 0), self._blank, self._early
        told = self._grow(message)
        if blank and logprobs:
            return [*told, self._event(*message.add_scored(blank, logprobs))]
        return [*told, self._piece(message, blank)] if blank else told

    def _begin(self) -> list[bytes]:
        """What comes before everything else; a start alone sends nothing."""
        if self._number:
            return []
        begun = {"response": self._response("in_progress", [])}
        return list(self._events([("response.created", begun), ("response.in_progress", begun)]))

    def _grow(self, item: Said | Thought) -> list[bytes]:
        ended = self._end_item()
        self._growing = item
        return [*self._begin(), *ended, *self._events(item.begin())]

    def _end_item(self, status: str = "completed") -> list[bytes]:
        growing, self._growing = self._growing, None
        if growing is None:
            return []
        self._output.append(growing.item(status))
        return self._events(growing.end(status))

    def _next_index(self) -> int:
        return len(self._output) + (self._growing is not None)

    def _piece(self, growing: Said | Thought, text: str) -> bytes:
        self._number += 1
        return growing.add(text, self._number - 1)

    def _events(self, events: Iterable[Event]) -> list[bytes]:
        return [self._event(*event) for event in events]

    def _event(self, type: str, values: Json) -> bytes:
        numbered = {"type": type, "sequence_number": self._number} | values
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (type.encode(), to_json(numbered))

    def _entries(self, logprobs: Iterable[TokenLogprob]) -> list[Json]:
        if self._call.request.logprobs is None:
            return []
        return [entry_of(entry) for entry in logprobs]

    def _response(self, status: str, output: list[Json]) -> Json:
        return {
            "id": response_id(self._call.id),
            "object": "response",
            "created_at": int(self._call.received),
            "completed_at": None,
            "status": status,
            "model": self._call.request.model,
            "error": None,
            "incomplete_details": None,
            "output": output,
            "usage": None,
        } | self._settings


def _usage(finished: Finished) -> Json:
    read, written = finished.prompt_tokens, finished.completion_tokens
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": finished.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": finished.reasoning_tokens},
        "total_tokens": read + written,
    }


def _failure(error: MlxdError) -> Json:
    """As OpenAI sends it, whose libraries raise what `error` holds, and as it is documented. Some
    that are built on them pass `response.failed` over, and would take half an answer for a whole.
    """
    inner = render_error(error)["error"] | {"code": _code(error)}
    return {name: inner[name] for name in ("code", "message", "param")} | {"error": inner}


def _code(error: MlxdError) -> str:
    """Of the few codes that this API has for a failure."""
    if isinstance(error, RateLimited):
        return "rate_limit_exceeded"
    if isinstance(error, ContextExceeded):
        return "context_length_exceeded"
    # There is no X-Should-Retry in a stream: agents try again whatever is not the prompt's fault.
    final = isinstance(error, InvalidRequest) or error.in_vain
    return "invalid_prompt" if final else "server_error"
