"""Recorded generations, and one codec of each kind to run over them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlxd.core.events import (
    Burst,
    Completion,
    Echo,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
    collect,
)
from mlxd.dialects import anthropic, ollama, openai
from mlxd.dialects.base import Call, Codec

DATA = Path(__file__).parents[1] / "data" / "dialects"
RECEIVED = 1_700_000_000.25
_RECORDED: dict[str, list[dict[str, Any]]] = json.loads((DATA / "generations.json").read_text())
_EVENTS: dict[str, Callable[..., GenerationEvent]] = {
    "started": Started,
    "text": TextDelta,
    "reasoning": ReasoningDelta,
    "call": ToolCall,
    "echo": Echo,
    "finished": Finished,
}
_CHAT = {"model": "Some/Model:1b", "messages": [{"role": "user", "content": "hi"}]}
_PROMPT = {"model": "Some/Model:1b", "prompt": "hi"}
_INPUT = {"model": "Some/Model:1b", "input": "hi"}
_USAGE = {"stream_options": {"include_usage": True}}

_THINKING = {"max_tokens": 100, "thinking": {"type": "adaptive"}}


@dataclass(frozen=True)
class Spoken:
    """A codec, and the body its call is made from."""

    name: str
    codec: Codec
    body: dict[str, Any]

    def call(self, **more: Any) -> Call:
        return self.codec.parse(self.body | more, id="abc123", now=RECEIVED)


SPOKEN = {
    spoken.name: spoken
    for spoken in (
        Spoken("anthropic.messages", anthropic.MessagesCodec(), _CHAT | _THINKING),
        Spoken("ollama.generate", ollama.GenerateCodec(), _PROMPT),
        Spoken("ollama.chat", ollama.ChatCodec(), _CHAT),
        Spoken("openai.chat", openai.ChatCodec(), _CHAT | _USAGE),
        Spoken("openai.completion", openai.CompletionCodec(), _PROMPT | _USAGE),
        Spoken("openai.responses", openai.ResponsesCodec(), _INPUT),
    )
}


@pytest.fixture(params=sorted(SPOKEN))
def spoken(request: pytest.FixtureRequest) -> Spoken:
    return SPOKEN[request.param]


@pytest.fixture(params=sorted(_RECORDED))
def events(request: pytest.FixtureRequest) -> list[GenerationEvent]:
    return _events_of(request.param)


@pytest.fixture
def events_of() -> Callable[[str], list[GenerationEvent]]:
    """A recorded generation by its name."""
    return _events_of


@pytest.fixture
def recorded() -> dict[str, list[GenerationEvent]]:
    return {name: _events_of(name) for name in _RECORDED}


@pytest.fixture
def completion_of() -> Callable[[list[GenerationEvent]], Awaitable[Completion]]:
    return _completion_of


@pytest.fixture
def now() -> float:
    """When everything is encoded."""
    return RECEIVED + 2.25


def _events_of(name: str) -> list[GenerationEvent]:
    return [_event(*item) for entry in _RECORDED[name] for item in entry.items()]


async def _completion_of(events: list[GenerationEvent]) -> Completion:
    async def bursts() -> AsyncIterator[Burst]:
        yield events

    return await collect(bursts())


def _event(kind: str, values: dict[str, Any]) -> GenerationEvent:
    if "logprobs" in values:
        values = values | {"logprobs": tuple(map(_logprob, values["logprobs"]))}
    return _EVENTS[kind](**values)


def _logprob(values: dict[str, Any]) -> TokenLogprob:
    top = tuple(
        (token, bytes.fromhex(raw), logprob) for token, raw, logprob in values.get("top", ())
    )
    return TokenLogprob(
        token=values["token"],
        raw=bytes.fromhex(values["raw"]),
        logprob=math.nan if values["logprob"] is None else values["logprob"],
        top=top,
    )
