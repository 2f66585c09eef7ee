"""What a generation produces, in order: `Started`, deltas and tool calls, one `Finished`.

Failure is not an event: inside the daemon it is an exception. Events that became ready together
travel together, as a `Burst`; a `Completion` is the fold of them all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token; `top` lists the likeliest first, as (token, raw, logprob)."""

    token: str
    raw: bytes
    """The token's own bytes: possibly half a character."""
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has accepted the request; always the first event."""

    prompt_tokens: int
    cached_tokens: int = 0
    wait_seconds: float = 0.0
    """From arrival to acceptance: waiting and loading."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer; may be empty when only `logprobs` has news."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of what the model thinks before it answers."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end, and what it took. Seconds are the worker's own, measured."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_string: str | None = None
    """Which of the request's stop strings ended it, if one did."""


GenerationEvent = Started | TextDelta | ReasoningDelta | ToolCall | Finished
Burst = Sequence[GenerationEvent]
"""Events that became ready together, in order; never empty."""


@dataclass(slots=True)
class Completion:
    """A whole generation: the fold of its events."""

    started: Started | None = None
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None


async def collect(bursts: AsyncIterator[Burst]) -> Completion:
    """Fold a generation into one Completion."""
    whole = Completion()
    text: list[str] = []
    reasoning: list[str] = []
    async for burst in bursts:
        for event in burst:
            match event:
                case Started():
                    whole.started = event
                case TextDelta():
                    text.append(event.text)
                    whole.logprobs.extend(event.logprobs)
                case ReasoningDelta():
                    reasoning.append(event.text)
                    whole.logprobs.extend(event.logprobs)
                case ToolCall():
                    whole.tool_calls.append(event)
                case Finished():
                    whole.finished = event
    whole.text = "".join(text)
    whole.reasoning = "".join(reasoning)
    return whole
