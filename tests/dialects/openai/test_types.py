"""Every answer and every chunk is what the `openai` package declares it to be."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlxd.core.events import Completion as Folded
from mlxd.core.events import GenerationEvent
from mlxd.dialects.openai import ChatCodec, CompletionCodec

BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "stream_options": {"include_usage": True, "include_obfuscation": True},
    "service_tier": "auto",
    "n": 2,
}
OLD = {"functions": [{"name": "look"}]}
CASES = [
    pytest.param(ChatCodec(), {"logprobs": True}, ChatCompletion, ChatCompletionChunk, id="chat"),
    pytest.param(ChatCodec(), OLD, ChatCompletion, ChatCompletionChunk, id="functions"),
    pytest.param(CompletionCodec(), {"logprobs": 2}, Completion, Completion, id="completion"),
]


@pytest.mark.parametrize(("codec", "more", "answer", "chunk"), CASES)
async def test_answers_and_chunks_have_the_packages_types(
    codec: Any,
    more: Any,
    answer: Any,
    chunk: Any,
    recorded: dict[str, list[GenerationEvent]],
    completion_of: Callable[[list[GenerationEvent]], Awaitable[Folded]],
) -> None:
    call = codec.parse(BODY | more, id="abc", now=5.0)
    for name, events in recorded.items():
        if name == "an echo":
            continue  # nobody knows how likely the first token is, and null is not in the type
        whole = codec.render(call, [await completion_of(events)] * 2, 9.0)
        answer.model_validate(json.loads(json.dumps(whole)), strict=True)
        encoder = codec.encoder(call)
        stream = encoder.feed(events, 9.0) + encoder.feed(events, 9.0, 1)
        for line in stream.decode().split("\n\n")[:-2]:
            said = json.loads(line.removeprefix("data: "))
            if chunk is Completion:  # whose type is that of a whole answer: null is not in it
                said["choices"] = [one for one in said["choices"] if one["finish_reason"]]
            chunk.model_validate(said, strict=True)
