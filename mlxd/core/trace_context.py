"""W3C trace context: which trace a request belongs to, as its headers say it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_INVALID_VERSION = "ff"
_SAMPLED = 1
_MOST_STATE = 512
_MOST_MEMBERS = 32
_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span, for whoever has spans of his own below it."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool
    state: str = ""
    """`tracestate`, handed on as it came."""

    @property
    def header(self) -> str:
        """As `traceparent` has it."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


@dataclass(frozen=True, slots=True)
class Trace:
    """What the spans of one request hang on."""

    context: TraceContext
    """Of its first span."""
    parent: TraceContext | None
    """The client's; None: the trace begins here."""
    route: str
    dialect: str
    began: float
    """When the request came, as `clock.stamp` has it."""

    def below(self, span_id: str) -> TraceContext:
        """The context of another of its spans."""
        one = self.context
        return TraceContext(one.trace_id, span_id, one.sampled, one.state)


def parsed(parents: Sequence[str], states: Sequence[str]) -> TraceContext | None:
    """What a request's `traceparent` and `tracestate` headers say; None: nothing that is valid."""
    found = _PARENT.fullmatch(parents[0].strip()) if len(parents) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == _INVALID_VERSION or (version == "00" and more):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), _state(states))


def new_trace_id() -> str:
    return secrets.token_hex(16)


def new_span_id() -> str:
    return secrets.token_hex(8)


def is_within(ratio: float, trace_id: str) -> bool:
    """Whether a trace is one of this share of all: the same for everybody who asks."""
    return int(trace_id[16:], 16) < ratio * 2**64


def _state(states: Sequence[str]) -> str:
    """Empty where a part of it is not valid, or it is too long."""
    members = [one.strip(" \t") for one in ",".join(states).split(",")]
    members = [one for one in members if one]
    names = {one.partition("=")[0] for one in members}
    if len(members) > _MOST_MEMBERS or len(names) < len(members):
        return ""
    joined = ",".join(members)
    whole = all(_MEMBER.fullmatch(one) for one in members)
    return joined if whole and len(joined) <= _MOST_STATE else ""
