"""/v1/completions: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mlxd.core.errors import InvalidRequest, MlxdError, UnsupportedFeature
from mlxd.core.events import (
    Completion,
    Echo,
    Embedding,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call, logprob_of
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.errors import render_error
from mlxd.dialects.openai.parameters import include_usage, read_request, token_id
from mlxd.dialects.openai.stream import (
    CONTENT_TYPE,
    HEARTBEAT,
    ChunkEncoder,
    envelope_of,
    usage_of,
)

_DEFAULT_MAX_TOKENS = 16
_MOST_LOGPROBS = 5
_PROMPT_FORMS = "string, array of one string, array of token ids"


class CompletionCodec:
    """OpenAI's old text completions."""

    path = "/v1/completions"
    content_type = CONTENT_TYPE
    heartbeat = HEARTBEAT

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields, request = read_request(body)
        _refuse_unoffered(fields)
        request = replace(
            _with_prompt(fields, request),
            max_tokens=fields.integer("max_tokens", low=1) or _DEFAULT_MAX_TOKENS,
            logprobs=fields.integer("logprobs", low=0, high=_MOST_LOGPROBS),
        )
        return Call(
            id=id,
            received=now,
            action="generate",
            request=request,
            include_usage=include_usage(fields),
        )

    def encoder(self, call: Call) -> CompletionEncoder:
        return CompletionEncoder(call, _envelope(call))

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        """A prompt taken as it is knows no reasoning: what a model marks as such is text here."""
        (completion,) = completions
        finished = completion.finished
        entries = _LogprobLists(call).extend(completion.logprobs)
        choice = {
            "index": 0,
            "text": completion.reasoning + completion.text,
            "logprobs": entries,
            "finish_reason": finished.reason if finished else "stop",
        }
        return _envelope(call) | {"choices": [choice], "usage": usage_of(finished)}

    def render_action(self, call: Call, now: float) -> Json:
        """This API can ask for neither load nor unload."""
        return self.render(call, [Completion()], now)

    def render_error(self, error: MlxdError) -> Json:
        return render_error(error)


class CompletionEncoder(ChunkEncoder):
    """A stream of text_completion objects."""

    def __init__(self, call: Call, envelope: Json) -> None:
        self._lists = _LogprobLists(call)
        super().__init__(call, envelope)

    def _text_choice(self, text: str, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        entries = self._lists.extend(logprobs) if logprobs else None
        return {"index": 0, "text": text, "logprobs": entries, "finish_reason": None}

    def _other(self, event: GenerationEvent) -> bytes:
        match event:
            case Started() | ToolCall() | Echo() | Embedding():
                return b""
            case TextDelta(text, logprobs) | ReasoningDelta(text, logprobs):
                return self._chunk(self._text_choice(text, logprobs))
            case Finished(reason):
                last = self._text_choice("") | {"finish_reason": reason}
                return self._end(last, usage_of(event))


class _LogprobLists:
    """OpenAI's old form: parallel lists, and where in the text each token begins."""

    def __init__(self, call: Call) -> None:
        self._asked = call.request.logprobs
        self._offset = 0

    def extend(self, entries: Iterable[TokenLogprob]) -> Json | None:
        if self._asked is None:
            return None
        lists: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for entry in entries:
            lists["tokens"].append(entry.token)
            lists["token_logprobs"].append(logprob_of(entry.logprob))
            lists["top_logprobs"].append(_top(entry) if self._asked else None)
            lists["text_offset"].append(self._offset)
            self._offset += len(entry.token)
        return lists


def _top(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest, and the sampled one where it is not among them."""
    top = {token: logprob_of(logprob) for token, _, logprob in entry.top}
    return top | {entry.token: logprob_of(entry.logprob)}


def _envelope(call: Call) -> Json:
    return envelope_of(call, f"cmpl-{call.id}", "text_completion")


def _refuse_unoffered(fields: Fields) -> None:
    if fields.flag("echo"):
        raise UnsupportedFeature("echo is not offered", param="echo")
    if (fields.integer("best_of", low=1) or 1) > 1:
        raise UnsupportedFeature("best_of > 1 is not offered", param="best_of")
    if fields.text("suffix"):
        raise UnsupportedFeature("suffix is not offered", param="suffix")


def _with_prompt(fields: Fields, request: GenerationRequest) -> GenerationRequest:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and not token_id(prompt[0]):
        if len(prompt) > 1:
            raise _several_or_wrong(fields, prompt)
        prompt = prompt[0]
    if prompt in (None, "", []):
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if isinstance(prompt, str):
        return replace(request, text=prompt)
    if isinstance(prompt, list) and all(map(token_id, prompt)):
        return replace(request, token_ids=tuple(prompt))
    raise fields.wrong("prompt", _PROMPT_FORMS)


def _several_or_wrong(fields: Fields, prompt: list[Any]) -> InvalidRequest:
    if all(isinstance(one, str | list) for one in prompt):
        return UnsupportedFeature(
            "several prompts in one request are not offered: send one request per prompt",
            param="prompt",
        )
    return fields.wrong("prompt", _PROMPT_FORMS)
