"""What OpenAI's two streams and two answers have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from mlxd.core.errors import MlxdError
from mlxd.core.events import (
    Burst,
    Completion,
    Finished,
    GenerationEvent,
    Started,
    TextDelta,
    TokenLogprob,
)
from mlxd.dialects.base import EVENT_STREAM, Call, NeverLoads, sse, to_json
from mlxd.dialects.fields import Json
from mlxd.dialects.openai.errors import render_error

_DONE = b"data: [DONE]\n\n"
_PADDING = b',"obfuscation":"'
_BLOCK = 64
"""Bytes: each padded chunk is a multiple of it long."""


class EventCodec(NeverLoads):
    """What OpenAI's endpoints share that stream."""

    content_type = EVENT_STREAM
    heartbeat = b": waiting\n\n"

    def render_error(self, error: MlxdError) -> Json:
        return render_error(error)


class Deltas(Protocol):
    """What the chunks of one choice hold. Stateful: each event is told once, in order."""

    def opening(self, first: GenerationEvent) -> Json | None:
        """The choice that comes before `first`, the first piece of any answer, if one does."""
        ...

    def text(self, text: str, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        """The choice that holds a piece of the answer."""
        ...

    def other(self, event: GenerationEvent) -> Json | None:
        """The choice of anything but plain text and the start; None where nothing is told."""
        ...


class _Choice:
    """One choice on its way out. A chunk of plain text is the same bytes around it each time."""

    __slots__ = ("after", "before", "deltas")

    def __init__(self, deltas: Deltas, empty_chunk: bytes) -> None:
        self.deltas = deltas
        # A chunk of empty text holds its last `""` where the text goes.
        self.before, _, self.after = empty_chunk.rpartition(b'""')


class ChunkEncoder:
    """One stream of chunks: those of all choices as they come, and one usage at the end."""

    def __init__(self, call: Call, envelope: Json, deltas: Sequence[Deltas]) -> None:
        """`deltas`: one for each of the call's requests."""
        self._call = call
        self._plain = call.request.logprobs is None and not call.padded
        """A chunk of text says nothing but that."""
        self._envelope = envelope
        self._deltas = deltas
        self._choices: list[_Choice] = []
        """Empty until there is something to say."""
        self._ends: dict[int, Finished] = {}

    def feed(self, burst: Burst, now: float, choice: int = 0) -> bytes:
        chunks: list[bytes] = []
        if not self._choices:
            _note_start(self._envelope, burst[0])
            first = next((event for event in burst if type(event) is not Started), None)
            if first is None:
                return b""
            chunks.append(self._open(first))
        told = self._choices[choice]
        before, after = told.before, told.after
        for event in burst:
            if type(event) is TextDelta and self._plain:
                chunks += (before, to_json(event.text), after)
            elif type(event) is not Started:
                chunks.append(self._other(told.deltas, event))
                if type(event) is Finished:
                    chunks.append(self._end(choice, event))
        return b"".join(chunks)

    def fail(self, error: MlxdError) -> bytes:
        return sse(to_json(render_error(error)))

    def _open(self, first: GenerationEvent) -> bytes:
        """All at once and in order: the client library numbers choices as they first appear."""
        self._choices = [_Choice(one, self._chunk(one.text(""))) for one in self._deltas]
        openings = [one.opening(first) for one in self._deltas]
        return b"".join(self._chunk(opening) for opening in openings if opening is not None)

    def _other(self, deltas: Deltas, event: GenerationEvent) -> bytes:
        choice = deltas.text(event.text, event.logprobs) if type(event) is TextDelta else None
        choice = choice or deltas.other(event)
        return b"" if choice is None else self._chunk(choice)

    def _chunk(self, choice: Json) -> bytes:
        chunk = self._envelope | {"choices": [choice]}
        if self._call.include_usage:
            chunk["usage"] = None
        data = to_json(chunk)
        return sse(_padded(data) if self._call.padded else data)

    def _end(self, choice: int, finished: Finished) -> bytes:
        """Nothing, until every choice has ended."""
        self._ends[choice] = finished
        if len(self._ends) < len(self._deltas):
            return b""
        if not self._call.include_usage:
            return _DONE
        ends = [self._ends[number] for number in sorted(self._ends)]
        usage = usage_of(self._call, ends)
        return sse(to_json(self._envelope | {"choices": [], "usage": usage})) + _DONE


def envelope_of(call: Call, id: str, object: str) -> Json:
    """What every answer and every chunk of one call begins with."""
    envelope: Json = {
        "id": id,
        "object": object,
        "created": int(call.received),
        "model": call.request.model,
        "system_fingerprint": None,
    }
    if call.service_tier:
        envelope["service_tier"] = call.service_tier
    return envelope


def whole(
    call: Call, envelope: Json, choices: list[Json], completions: Sequence[Completion]
) -> Json:
    """A whole answer. Those of `completions` that are not told have their part in its usage."""
    _note_start(envelope, completions[0].started)
    usage = usage_of(call, [completion.finished for completion in completions])
    return envelope | {"choices": choices, "usage": usage}


def usage_of(call: Call, ends: Sequence[Finished | None]) -> Json:
    """Token counts of all answers together; a prompt counts once, however many it has. Those of its
    tokens are cached that none of them had to compute: one may have, for the others.
    """
    made = [end for end in ends if end is not None]
    each = (ends[at : at + call.choices] for at in range(0, len(ends), call.choices))
    of_each = [of_one for one in each if (of_one := [end for end in one if end is not None])]
    prompt = sum(of_one[0].prompt_tokens for of_one in of_each)
    cached = sum(min(end.cached_tokens for end in of_one) for of_one in of_each)
    completion = sum(end.completion_tokens for end in made)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": sum(end.reasoning_tokens for end in made)
        },
    }


def _note_start(envelope: Json, event: GenerationEvent | None) -> None:
    if type(event) is Started and event.fingerprint:
        envelope["system_fingerprint"] = event.fingerprint


def _padded(data: bytes) -> bytes:
    """The same object, as long as the next multiple of `_BLOCK`."""
    missing = -(len(data) + len(_PADDING) + 1) % _BLOCK
    return data[:-1] + _PADDING + b"0" * missing + b'"}'
