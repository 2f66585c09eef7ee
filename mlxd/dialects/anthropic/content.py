"""What Anthropic's whole and streamed answers have in common: blocks, counts, why it ended."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import Any

from mlxd.core.events import Finished, Piece, ReasoningDelta, Started, TextDelta, ToolCall
from mlxd.dialects.base import Call
from mlxd.dialects.fields import Json
from mlxd.dialects.tool_calls import tool_call_id

CACHES = "cache"
"""In `Call.about`: the request marks what is to be cached."""


def message_of(call: Call) -> Json:
    """What every answer begins with."""
    return {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "model": call.request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def blocks_of(pieces: Iterable[Piece]) -> list[Piece]:
    """One for each block: what is nothing but white space opens none."""
    blocks: list[Piece] = []
    said = (piece for piece in pieces if isinstance(piece, ToolCall) or piece.text)
    for _, group in groupby(said, key=type):
        run = list(group)
        first = run[0]
        if isinstance(first, ToolCall):
            blocks += run
            continue
        text = "".join(piece.text for piece in run if not isinstance(piece, ToolCall))
        last = blocks[-1] if blocks else None
        if isinstance(last, TextDelta | ReasoningDelta) and type(last) is type(first):
            blocks[-1] = type(first)(last.text + text)
        elif not text.isspace():
            blocks.append(type(first)(text))
    return blocks


def tells_thoughts(call: Call) -> bool:
    """Some models think whatever they are told; who did not ask finds text in the first block."""
    return call.request.think is not False


def content_of(call: Call, pieces: Iterable[Piece]) -> list[Json]:
    if not tells_thoughts(call):
        pieces = (piece for piece in pieces if not isinstance(piece, ReasoningDelta))
    content: list[Json] = []
    calls = 0
    for block in blocks_of(pieces):
        match block:
            case TextDelta(text):
                content.append({"type": "text", "text": text})
            case ReasoningDelta(text):
                signature = Signature(text).text
                content.append({"type": "thinking", "thinking": text, "signature": signature})
            case ToolCall():
                content.append(tool_use(call, calls, block) | {"input": block.arguments})
                calls += 1
    return content


def tool_use(call: Call, index: int, called: ToolCall) -> Json:
    """A block that calls a tool, without what it is called with."""
    id = tool_call_id(call.id, index, prefix="toolu_")
    return {"type": "tool_use", "id": id, "name": called.name, "input": {}}


def stop_of(call: Call, finished: Finished | None, *, called: bool) -> Json:
    """Why it ended. One that was cut says so, whatever it called before: it may have gone on."""
    stop = finished.stop_string if finished else None
    if finished and finished.reason == "length":
        reason = _length(call, finished)
    elif called:
        reason = "tool_use"
    elif stop is not None:
        reason = "stop_sequence"
    elif call.request.want == "prompt":
        reason = "max_tokens"
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": None if called else stop}


def _length(call: Call, finished: Finished) -> str:
    """An agent that meets the end of the context shortens its conversation; else it asks on."""
    asked = call.request.max_tokens
    if finished.context_full and asked is not None and finished.completion_tokens < asked:
        return "model_context_window_exceeded"
    return "max_tokens"


def marks_cache(body: Json) -> bool:
    """Whether anything in a request has a `cache_control`."""
    lists = (body.get(name) for name in ("system", "tools", "messages"))
    blocks = chain([body], *map(_blocks_in, lists))
    return any(block.get("cache_control") for block in blocks)


def _blocks_in(value: Any) -> Iterator[Json]:
    """Those of a list, and those that they hold."""
    for block in value if isinstance(value, list) else ():
        if isinstance(block, dict):
            yield block
            yield from _blocks_in(block.get("content"))
            source = block.get("source")
            if isinstance(source, dict):
                yield from _blocks_in(source.get("content"))


def usage_of(call: Call, counts: Started | Finished | None) -> Json:
    """Tokens that were computed already are counted apart, and not in `input_tokens`, for who marks
    what is to be cached; to others this API tells nothing of a cache.
    """
    read = counts.cached_tokens if counts and call.about.get(CACHES) else 0
    usage: Json = {
        "input_tokens": counts.prompt_tokens - read if counts else 0,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": read,
        "output_tokens": 0,
    }
    if isinstance(counts, Finished):
        usage["output_tokens"] = counts.completion_tokens
        usage["output_tokens_details"] = {"thinking_tokens": counts.reasoning_tokens}
    return usage


class Signature:
    """Of what was thought: clients send it back, and some drop thoughts that have none."""

    def __init__(self, text: str = "") -> None:
        self._digest = hashlib.blake2s(text.encode())

    def add(self, text: str) -> None:
        self._digest.update(text.encode())

    @property
    def text(self) -> str:
        return base64.b64encode(self._digest.digest()).decode()
