"""What OpenAI's two streams and two answers have in common."""

from __future__ import annotations

from collections.abc import Iterable

from mlxd.core.errors import MlxdError
from mlxd.core.events import (
    Burst,
    Finished,
    GenerationEvent,
    Started,
    TextDelta,
    TokenLogprob,
)
from mlxd.dialects.base import Call, sse, to_json
from mlxd.dialects.fields import Json
from mlxd.dialects.openai.errors import render_error

CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b": waiting\n\n"
_DONE = b"data: [DONE]\n\n"


class ChunkEncoder:
    """One stream of chunks. A chunk of plain text is the same bytes around the text each time."""

    def __init__(self, call: Call, envelope: Json) -> None:
        self._call = call
        self._envelope = envelope
        self._opening = self._open()
        # A chunk of empty text holds its last `""` where the text goes.
        self._before, _, self._after = self._chunk(self._text_choice("")).rpartition(b'""')

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        before, after = self._before, self._after
        chunks: list[bytes] = []
        if self._opening and type(burst[-1]) is not Started:
            chunks.append(self._opening)
            self._opening = b""
        for event in burst:
            if type(event) is TextDelta and not event.logprobs:
                chunks += (before, to_json(event.text), after)
            else:
                chunks.append(self._other(event))
        return b"".join(chunks)

    def fail(self, error: MlxdError) -> bytes:
        return sse(to_json(render_error(error)))

    def _open(self) -> bytes:
        """What comes before the first piece of the answer; a start alone sends nothing."""
        return b""

    def _text_choice(self, text: str, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        """The choice that holds a piece of the answer."""
        raise NotImplementedError

    def _other(self, event: GenerationEvent) -> bytes:
        """The chunks of anything but plain text."""
        raise NotImplementedError

    def _chunk(self, choice: Json) -> bytes:
        chunk = self._envelope | {"choices": [choice]}
        if self._call.include_usage:
            chunk["usage"] = None
        return sse(to_json(chunk))

    def _end(self, last_choice: Json, usage: Json) -> bytes:
        end = self._chunk(last_choice)
        if self._call.include_usage:
            end += sse(to_json(self._envelope | {"choices": [], "usage": usage}))
        return end + _DONE


def envelope_of(call: Call, id: str, object: str) -> Json:
    """What every answer and every chunk of one call begins with."""
    return {
        "id": id,
        "object": object,
        "created": int(call.received),
        "model": call.request.model,
        "system_fingerprint": "mlxd",
    }


def usage_of(finished: Finished | None, *, reasoned: bool = False) -> Json:
    """Token counts. How many were reasoning is only known when none were."""
    if finished is None:
        return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    usage: Json = {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
    }
    if not reasoned:
        usage["completion_tokens_details"] = {"reasoning_tokens": 0}
    return usage
