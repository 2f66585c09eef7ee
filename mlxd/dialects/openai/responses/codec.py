"""/v1/responses, and /v1/responses/input_tokens beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxd.core.events import Completion, Finished
from mlxd.dialects.base import Call
from mlxd.dialects.fields import Json
from mlxd.dialects.openai.responses.items import with_ids
from mlxd.dialects.openai.responses.request import SEALED_REASONING, Earlier, read
from mlxd.dialects.openai.responses.stream import ResponsesEncoder
from mlxd.dialects.openai.stream import EventCodec

_NOTHING = Earlier()
_NAMES = {"max_tokens": "max_output_tokens", "messages": "input"}


class ResponsesCodec(EventCodec):
    """OpenAI's responses."""

    path = "/v1/responses"

    def parse(
        self,
        body: Json,
        *,
        id: str,
        now: float,
        earlier: Earlier = _NOTHING,
        keeps: bool = True,
    ) -> Call:
        """`earlier` is what the body refers to (`references`); `keeps`: whether anybody keeps
        answers.
        """
        asked = read(body, earlier, keeps=keeps)
        taken = [item["id"] for item in earlier.conversation if "id" in item]
        included = body.get("include") or []
        about = {
            "settings": asked.settings,
            "items": with_ids(asked.items, id, taken),
            "sealed": SEALED_REASONING in included,
        }
        return Call(
            id=id,
            received=now,
            action="generate",
            request=asked.request,
            names=_NAMES | asked.names,
            about=about,
        )

    def encoder(self, call: Call) -> ResponsesEncoder:
        return ResponsesEncoder(call)

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        """What the last event of a stream holds."""
        (completion,) = completions
        encoder = ResponsesEncoder(call)
        encoder.feed([*completion.pieces, completion.finished or Finished("stop", 0, 0)], now)
        assert encoder.whole is not None
        return encoder.whole


class InputTokensCodec(ResponsesCodec):
    """How many tokens the input of such a request has, as the model would read it."""

    path = "/v1/responses/input_tokens"

    def parse(
        self,
        body: Json,
        *,
        id: str,
        now: float,
        earlier: Earlier = _NOTHING,
        keeps: bool = False,
    ) -> Call:
        call = super().parse(body, id=id, now=now, earlier=earlier, keeps=False)
        return replace(call, request=replace(call.request, want="prompt", stream=False))

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        (completion,) = completions
        finished = completion.finished or Finished("stop", 0, 0)
        return {"object": "response.input_tokens", "input_tokens": finished.prompt_tokens}
