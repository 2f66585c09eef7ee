"""The spans of one request, made of its story when it has ended: docs/reference/traces.md lists
them. Never anything of what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlxd.core.leg import Leg
from mlxd.core.story import Fact, Note, Story
from mlxd.core.trace_context import Trace, TraceContext, new_span_id

Value = str | bool | int | float | Sequence[str]
Attributes = dict[str, Value]

METHOD = "POST"
"""Of all that is traced."""
PROVIDER = "mlxd"
_LEFT = 499
"""The status of a request whose client left before its end."""
_FAULT = 500
"""The lowest status that is the server's own failure."""
_NANO = 1_000_000_000
_OPERATIONS = {"answer": "chat", "embedding": "embeddings"}
_FINISHED = frozenset({"stop", "length"})
_DROPPED = frozenset({"", "cancelled", *_FINISHED})
"""Ends of a leg that are nobody's failure; empty: it has not ended."""


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    at: int
    """In nanoseconds since the epoch."""
    attributes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """One span, ended. Times in nanoseconds since the epoch."""

    name: str
    context: TraceContext
    parent: TraceContext | None
    start: int
    end: int
    attributes: Mapping[str, Value]
    events: Sequence[Event] = ()
    failed: bool = False
    kind: Literal["server", "internal"] = "internal"


def spans_of(story: Story, trace: Trace, status: int, ended: float) -> list[Span]:
    """The tree, its root first. `ended`: as `clock.stamp` has it."""
    return list(_Tree(story, trace, status, ended).spans())


class _Tree:
    def __init__(self, story: Story, trace: Trace, status: int, ended: float) -> None:
        self._story = story
        self._trace = trace
        self._status = status
        self._ended = ended
        self._over = ended - trace.began

    def spans(self) -> Iterator[Span]:
        yield self._root()
        yield from self._queue()
        yield from self._load()
        for leg in self._story.legs:
            yield from self._worker(leg)

    def _root(self) -> Span:
        story, trace = self._story, self._trace
        first = story.first_token
        return Span(
            name=f"{METHOD} {trace.route}",
            context=trace.context,
            parent=trace.parent,
            start=self._moment(0.0),
            end=self._moment(self._over),
            attributes=self._asked() | self._generated() | self._came_of_it(),
            events=[] if first is None else [Event("first_token", self._moment(first))],
            failed=self._status >= _FAULT or bool(story.code and self._status < 400),
            kind="server",
        )

    def _asked(self) -> Attributes:
        story, trace = self._story, self._trace
        asked: Attributes = {
            "http.request.method": METHOD,
            "http.route": trace.route,
            "url.scheme": "http",
            "mlxd.request.id": story.id,
            "mlxd.dialect": trace.dialect,
            "mlxd.policy.generation": story.generation,
        }
        if story.caller.tenant:
            asked["mlxd.tenant"] = story.caller.tenant
        if story.want:
            asked |= {
                "mlxd.want": story.want,
                "mlxd.stream": story.stream,
                "mlxd.priority": story.priority,
            }
        return asked

    def _generated(self) -> Attributes:
        story = self._story
        said: Attributes = {"gen_ai.provider.name": PROVIDER}
        if story.want in _OPERATIONS:
            said["gen_ai.operation.name"] = _OPERATIONS[story.want]
        if story.model:
            said["gen_ai.request.model"] = story.model
        if story.max_tokens is not None:
            said["gen_ai.request.max_tokens"] = story.max_tokens
        if story.requests > 1:
            said["gen_ai.request.choice.count"] = story.requests
        if story.accepted is not None:
            said |= {
                "gen_ai.usage.input_tokens": story.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": story.cached_tokens,
                "gen_ai.usage.output_tokens": story.told_so_far,
            }
        return said

    def _came_of_it(self) -> Attributes:
        story = self._story
        came: Attributes = {"http.response.status_code": self._status}
        if story.code or self._status == _LEFT:
            came["error.type"] = story.code or "left"
        if story.replays:
            came["mlxd.replays"] = story.replays
        return came

    def _queue(self) -> Iterator[Span]:
        """From being asked whether it may run to its slot, or to its end without one."""
        story = self._story
        if story.judged is None:
            return
        attributes: Attributes = {"mlxd.queue.waited": False}
        if (queued := self._note("queued")) is not None:
            attributes = {"mlxd.queue.waited": True} | _some(
                queued, {"mlxd.queue.position": "position"}
            )
        yield self._below("queue", story.judged, story.admitted, attributes)

    def _load(self) -> Iterator[Span]:
        """The wait for its model, where that was not there."""
        story = self._story
        begun = self._note("asked") if story.want == "load" else None
        since = story.admitted if begun is None else begun.after
        if since is None or (story.leased is not None and not story.loaded):
            return
        attributes: Attributes = {}
        if (leased := self._note("leased")) is not None:
            attributes = _some(
                leased,
                {
                    "mlxd.load.room_seconds": "room_seconds",
                    "mlxd.load.seconds": "load_seconds",
                    "mlxd.load.spare": "spare",
                    "mlxd.load.evicted": "evicted",
                },
            )
        yield self._below("load", since, story.leased, attributes)

    def _worker(self, leg: Leg) -> Iterator[Span]:
        ended = leg.ended or self._ended
        begun = leg.received or leg.sent
        context = self._trace.below(leg.span_id or new_span_id())
        start = self._at(begun)
        yield Span(
            name="worker",
            context=context,
            parent=self._trace.context,
            start=start,
            end=self._at(ended),
            attributes=_of_leg(leg),
            events=_replayed(leg, start),
            failed=leg.reason not in _DROPPED,
        )
        if leg.started:
            yield self._part(context, "prefill", leg.started, leg.first or ended, _prefill(leg))
        if leg.first:
            yield self._part(context, "decode", leg.first, ended, _decode(leg))

    def _part(
        self, above: TraceContext, name: str, start: float, end: float, attributes: Attributes
    ) -> Span:
        """Of a leg."""
        context = self._trace.below(new_span_id())
        return Span(name, context, above, self._at(start), self._at(end), attributes)

    def _below(self, name: str, start: float, end: float | None, attributes: Attributes) -> Span:
        """Right below the root; without an `end` it ends with that."""
        context, until = self._trace.below(new_span_id()), self._over if end is None else end
        return Span(
            name, context, self._trace.context, self._moment(start), self._moment(until), attributes
        )

    def _note(self, what: str) -> Note | None:
        return next((note for note in self._story.notes if note.what == what), None)

    def _at(self, stamp: float) -> int:
        return self._moment(stamp - self._trace.began)

    def _moment(self, after: float) -> int:
        """So many seconds after the request came."""
        return int(self._story.wall * _NANO) + int(after * _NANO)


def _of_leg(leg: Leg) -> Attributes:
    said: Attributes = {
        "process.pid": leg.pid,
        "mlxd.worker.attempt": leg.attempt,
        "mlxd.worker.prompt_tokens": leg.prompt_tokens,
        "mlxd.worker.cached_tokens": leg.cached_tokens,
    }
    if leg.reason in _FINISHED:
        said["gen_ai.response.finish_reasons"] = (leg.reason,)
    elif leg.reason:
        said["error.type"] = leg.reason
    return said


def _replayed(leg: Leg, at: int) -> list[Event]:
    if not leg.reason_before:
        return []
    told: Attributes = {
        "mlxd.replay.reason": leg.reason_before,
        "mlxd.replay.tokens": leg.tokens_before,
    }
    return [Event("replayed", at, told)]


def _prefill(leg: Leg) -> Attributes:
    tokens = leg.prompt_tokens + leg.tokens_before - leg.cached_tokens
    return {"mlxd.prefill.tokens": max(0, tokens)}


def _decode(leg: Leg) -> Attributes:
    return {"mlxd.decode.tokens": max(0, leg.tokens - leg.tokens_before)}


def _some(note: Note, names: Mapping[str, str]) -> Attributes:
    """What it has of these facts, by the names of attributes."""
    found: dict[str, Fact] = {name: note.facts.get(fact) for name, fact in names.items()}
    return {name: value for name, value in found.items() if value is not None and value != ""}
