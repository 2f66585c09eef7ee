"""/v1/completions: text in, text out."""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import isnan
from typing import Any

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.core.events import (
    Completion,
    Echo,
    Finished,
    GenerationEvent,
    ReasoningDelta,
    TokenLogprob,
    ToolCall,
)
from mlxd.core.request import GenerationRequest
from mlxd.dialects.base import Call, logprob_of
from mlxd.dialects.fields import Fields, Json
from mlxd.dialects.openai.choices import (
    MOST_IN_ALL,
    choices_of,
    read_best_of,
    read_count,
    told,
)
from mlxd.dialects.openai.formats import format_names
from mlxd.dialects.openai.parameters import limited, read_request, stream_options, token_id
from mlxd.dialects.openai.stream import ChunkEncoder, EventCodec, envelope_of, whole

_DEFAULT_MAX_TOKENS = 16
MOST_LOGPROBS = 5
_MOST_SKIPPED = 8
"""Characters of a text that no token of it says: its tokenizer has changed them."""
_PROMPT_FORMS = "string, array of strings, array of token ids, or array of those"


class CompletionCodec(EventCodec):
    """OpenAI's old text completions."""

    path = "/v1/completions"

    def parse(self, body: Json, *, id: str, now: float) -> Call:
        fields, request = read_request(body)
        echo = fields.flag("echo") or False
        wanted = read_count(fields)
        made = read_best_of(fields, wanted, stream=request.stream)
        logprobs = fields.integer("logprobs", low=0, high=MOST_LOGPROBS)
        request = replace(
            limited(request, _max_tokens(fields, echo=echo)),
            logprobs=0 if logprobs is None and made > wanted else logprobs,
            echo=echo,
        )
        prompts = _with_prompts(fields, request, _prompts(fields, made))
        first, *more = (one for each in prompts for one in choices_of(each, made))
        return Call(
            id=id,
            received=now,
            action="generate",
            request=first,
            more=tuple(more),
            choices=made,
            kept=wanted if made > wanted else 0,
            plural="prompt" if made == 1 else "n" if made == wanted else "best_of",
            tells_logprobs=logprobs is not None,
            names=format_names(fields),
            **stream_options(fields),
        )

    def encoder(self, call: Call) -> ChunkEncoder:
        deltas = [TextDeltas(call, index) for index in range(len(call.requests))]
        return ChunkEncoder(call, _envelope(call), deltas)

    def render(self, call: Call, completions: Sequence[Completion], now: float) -> Json:
        answers = enumerate(told(call, completions))
        choices = [_whole_choice(call, index, one) for index, one in answers]
        return whole(call, _envelope(call), choices, completions)


class TextDeltas:
    """What the chunks of one choice hold.

    A prompt taken as it is knows no reasoning: what a model marks as such is text here.
    """

    def __init__(self, call: Call, index: int) -> None:
        self._index = index
        self._lists = _LogprobLists(call)

    def opening(self, first: GenerationEvent) -> None:
        return None

    def text(self, text: str, logprobs: Iterable[TokenLogprob] = ()) -> Json:
        lists = self._lists.extend(text, logprobs)
        return self._choice(text, lists if logprobs else None)

    def other(self, event: GenerationEvent) -> Json | None:
        match event:
            case Echo():
                return self._choice(event.text, self._lists.begin(event))
            case ReasoningDelta(text, logprobs):
                return self.text(text, logprobs)
            case Finished(reason):
                return self._choice("", None) | {"finish_reason": reason}
            case _:
                return None

    def _choice(self, text: str, logprobs: Json | None) -> Json:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}


class _LogprobLists:
    """OpenAI's old form: parallel lists, and where in the text each token begins. One that is not
    in the text, as one that opens it or marks thinking, begins where the next does.
    """

    def __init__(self, call: Call) -> None:
        self._asked = call.request.logprobs if call.tells_logprobs else None
        self._offset = 0
        self._characters = _characters()

    def begin(self, echo: Echo) -> Json | None:
        """Those of the prompt; what follows begins behind its text, whatever its tokens say."""
        lists = self.extend(echo.text, echo.logprobs)
        self._characters = _characters()
        return lists if echo.logprobs else None

    def extend(self, text: str, entries: Iterable[TokenLogprob]) -> Json | None:
        """`text`: that the entries came with."""
        if self._asked is None:
            return None
        lists: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        at = 0
        for entry in entries:
            known = not isnan(entry.logprob)
            lists["tokens"].append(_name(entry.token, entry.raw))
            lists["token_logprobs"].append(logprob_of(entry.logprob) if known else None)
            lists["top_logprobs"].append(_top(entry) if self._asked and known else None)
            piece = self._characters.decode(entry.raw)
            found = text.find(piece, at, at + len(piece) + _MOST_SKIPPED)
            at = max(found, at)
            lists["text_offset"].append(self._offset + at)
            at += len(piece) if found >= 0 else 0
        self._offset += len(text)
        return lists


def _characters() -> IncrementalDecoder:
    """Gives a character with the token that ends it."""
    return getincrementaldecoder("utf-8")("ignore")


def _top(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest, and the sampled one where it is not among them."""
    top = {_name(token, raw): logprob_of(logprob) for token, raw, logprob in entry.top}
    return top | {_name(entry.token, entry.raw): logprob_of(entry.logprob)}


def _name(token: str, raw: bytes) -> str:
    """What is no text is called by its bytes, as OpenAI does where a token is all that is told."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    return token


def _envelope(call: Call) -> Json:
    return envelope_of(call, f"cmpl-{call.id}", "text_completion")


def _whole_choice(call: Call, index: int, completion: Completion) -> Json:
    lists, echo, finished = _LogprobLists(call), completion.echo, completion.finished
    before = lists.begin(echo) if echo else None
    written = _written(completion)
    after = lists.extend(written, completion.logprobs)
    return {
        "index": index,
        "text": (echo.text if echo else "") + written,
        "logprobs": _joined(before, after) if before and after else after,
        "finish_reason": finished.reason if finished else "stop",
    }


def _written(completion: Completion) -> str:
    """Thoughts where they stood: offsets of log-probabilities count them, too."""
    return "".join(p.text for p in completion.pieces if not isinstance(p, ToolCall))


def _joined(before: Json, after: Json) -> Json:
    return {name: values + after[name] for name, values in before.items()}


def _max_tokens(fields: Fields, *, echo: bool) -> int:
    """None at all is for whoever wants the prompt scored."""
    value = fields.integer("max_tokens", low=0 if echo else 1)
    return _DEFAULT_MAX_TOKENS if value is None else value


def _prompts(fields: Fields, made: int) -> list[Any]:
    """Whatever stands for them: not so many that `made` answers of each were too many."""
    value = fields.get("prompt")
    several = isinstance(value, list) and bool(value) and not token_id(value[0])
    prompts = value if several else [value]
    if made * len(prompts) > MOST_IN_ALL:
        raise InvalidRequest(
            f"the request asks for more than {MOST_IN_ALL} answers", param="prompt"
        )
    return prompts


def _with_prompts(
    fields: Fields, request: GenerationRequest, prompts: list[Any]
) -> list[GenerationRequest]:
    """One for each prompt."""
    suffix = fields.text("suffix") or None
    if suffix is not None:
        if request.echo:
            raise UnsupportedFeature("echo is not offered with suffix", param="echo")
        request = replace(request, suffix=suffix)
    if len(prompts) == 1:
        return [_with_prompt(fields, request, prompts[0], "prompt")]
    return [
        _with_prompt(fields, request, prompt, f"prompt[{index}]")
        for index, prompt in enumerate(prompts)
    ]


def _with_prompt(
    fields: Fields, request: GenerationRequest, prompt: Any, path: str
) -> GenerationRequest:
    if isinstance(prompt, str) and (prompt or request.suffix):
        return replace(request, text=prompt)
    if prompt in (None, "", []):
        raise InvalidRequest(f"{path} must not be empty", param=path)
    if not isinstance(prompt, list) or not all(map(token_id, prompt)):
        raise fields.wrong("prompt", _PROMPT_FORMS)
    if request.suffix is not None:
        raise UnsupportedFeature("suffix is offered for prompts of text only", param="suffix")
    return replace(request, token_ids=tuple(prompt))
