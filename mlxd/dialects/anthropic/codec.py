"""/v1/messages, and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxd.core.errors import MlxdError
from mlxd.core.events import Completion
from mlxd.dialects.anthropic.content import (
    CACHES,
    content_of,
    marks_cache,
    message_of,
    stop_of,
    usage_of,
)
from mlxd.dialects.anthropic.errors import render_error
from mlxd.dialects.anthropic.parameters import format_name, read_prompt, with_sampling
from mlxd.dialects.anthropic.stream import HEARTBEAT, MessageEncoder
from mlxd.dialects.base import EVENT_STREAM, Call, NeverLoads
from mlxd.dialects.fields import Json


class _Codec(NeverLoads):
    content_type = EVENT_STREAM
    heartbeat = HEARTBEAT

    def encoder(self, call: Call) -> MessageEncoder:
        return MessageEncoder(call)

    def render_error(self, error: MlxdError) -> Json:
        return render_error(error)


class MessagesCodec(_Codec):
    """Anthropic's messages."""

    path = "/v1/messages"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields, request = read_prompt(body)
        request = with_sampling(fields, request)
        if request.max_tokens == 0:
            request = replace(request, want="prompt", max_tokens=None)
        names = {"format": format_name(fields), "stop": "stop_sequences"}
        about = {CACHES: marks_cache(body)}
        return Call(
            id=id, received=now, action="generate", request=request, names=names, about=about
        )

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        (completion,) = completions
        pieces = completion.pieces if call.request.want == "answer" else []
        stop = stop_of(call, completion.finished, called=bool(completion.tool_calls))
        usage = {"usage": usage_of(call, completion.finished)}
        return message_of(call) | {"content": content_of(call, pieces)} | stop | usage


class CountCodec(_Codec):
    """The tokens of what /v1/messages would send to the model."""

    path = "/v1/messages/count_tokens"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        _, request = read_prompt(body)
        request = replace(request, want="prompt")
        return Call(id=id, received=now, action="generate", request=request)

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        (completion,) = completions
        finished = completion.finished
        return {"input_tokens": finished.prompt_tokens if finished else 0}
