"""What a request asks, as the model reads it: the chat template, and tokens."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mlxd.core.request import CalledTool, GenerationRequest, Json, Message
from mlxd.worker.infill import Infill
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import Room, longest_token
from mlxd.worker.templates import Templates

_RESERVED = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
} - {"documents"}
"""Names that would steer the tokenizer instead of its template."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt in tokens. `reasoning`: it ends inside a think block that it opened."""

    tokens: list[int]
    reasoning: bool


class Prompter:
    """Renders and tokenises for one model. Used by one thread."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._renders_text = hasattr(tokenizer, "backend_tokenizer")
        """Not so where templates are the tokenizer's own code, which may write no text."""
        self._templates = Templates()
        self._infill = Infill(tokenizer)

    def render(self, request: GenerationRequest, room: Room) -> Rendered:
        """Raises Refusal; for a text that is certainly too long, before its tokens are counted."""
        if request.token_ids is not None:
            tokens = list(request.token_ids)
        elif request.suffix is not None:
            tokens = self._around_gap(request, room)
        elif request.text is not None:
            tokens = self._encode(request.text, room)
        elif request.context:
            tokens = self._going_on(request.context, self._conversation(request, room))
        else:
            tokens = self._conversation(request, room)
        return self.rendered(tokens)

    def rendered(self, tokens: list[int]) -> Rendered:
        """A prompt that another worker has rendered."""
        return Rendered(tokens, self._reasoning(tokens))

    def ends(self, request: GenerationRequest) -> tuple[str, ...]:
        """Beside the request's own stop strings, what ends its answer."""
        return self._infill.ends if request.suffix is not None else ()

    def _around_gap(self, request: GenerationRequest, room: Room) -> list[int]:
        marks = self._infill.marks
        if marks is None:
            words = f"{request.model} does not support insert"
            raise Refusal(words, code="unsupported", param="suffix")
        before, behind = (
            self._tokens(text or "", room, special=False) for text in (request.text, request.suffix)
        )
        return self._infill.around(marks, before, behind)

    def _going_on(self, context: tuple[int, ...], turns: list[int]) -> list[int]:
        """An answer that was cut off is ended first."""
        ends = self._tokenizer.eos_token_ids
        end = self._tokenizer.eos_token_id
        gap = [] if end is None or context[-1] in ends else [end]
        bos = self._tokenizer.bos_token_id
        begun = bos is not None and turns[:1] == [bos]
        return [*context, *gap, *(turns[1:] if begun else turns)]

    def _encode(self, text: str, room: Room) -> list[int]:
        bos = self._tokenizer.bos_token
        return self._tokens(text, room, special=not (bos and text.startswith(bos)))

    def _tokens(self, text: str, room: Room, *, special: bool) -> list[int]:
        size = len(text.encode("utf-8", "ignore"))
        if size > room.most and self._longest is not None:
            room.check_bytes(size, self._longest)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return tokens

    @functools.cached_property
    def _longest(self) -> int | None:
        """Worked out for the first text that may be too long."""
        return longest_token(self._tokenizer)

    def _conversation(self, request: GenerationRequest, room: Room) -> list[int]:
        messages = [_template_message(message) for message in request.messages or ()]
        if not messages:
            raise Refusal("the conversation has no messages", param="messages")
        if request.template:
            return self._tokens(self._by_template(request, messages), room, special=False)
        if not self._tokenizer.has_chat_template:
            return self._encode(_transcript(messages), room)
        try:
            prompt: str | list[int] = self._tokenizer.apply_chat_template(
                messages,
                tools=list(request.tools) or None,
                add_generation_prompt=True,
                tokenize=not self._renders_text,
                **self._options(request),
            )
        except TemplateError as error:
            raise Refusal(f"the model's chat template refuses this: {error}") from error
        return self._tokens(prompt, room, special=False) if isinstance(prompt, str) else prompt

    def _by_template(self, request: GenerationRequest, messages: list[Json]) -> str:
        """The request's own template gets what the model's would."""
        return self._templates.render(
            request.template,
            {
                **{name: str(token) for name, token in self._special_tokens()},
                "enable_thinking": bool(self._tokenizer.has_thinking),
                **self._options(request),
                "messages": messages,
                "tools": list(request.tools) or None,
                "add_generation_prompt": True,
            },
        )

    def _special_tokens(self) -> list[tuple[str, Any]]:
        known = self._tokenizer.special_tokens_map.items()
        return [(name, token) for name, token in known if not isinstance(token, list)]

    def _options(self, request: GenerationRequest) -> dict[str, Any]:
        for name in request.template_options:
            if name in _RESERVED:
                raise Refusal(f"{name} is not an option of the chat template", param=name)
        return {**_thinking(request.think), **request.template_options}

    def _reasoning(self, tokens: list[int]) -> bool:
        if not self._tokenizer.has_thinking or not tokens:
            return False
        start: int = self._tokenizer.rfind_think_start(tokens)
        end: int = self._tokenizer.rfind_think_end(tokens)
        return start > end


def _thinking(think: bool | str | None) -> dict[str, Any]:
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"enable_thinking": think}
    return {"enable_thinking": think != "none", "reasoning_effort": think}


def _template_message(message: Message) -> Json:
    """As templates read it; a key that says nothing is left out, since some ask `is defined`."""
    turn: Json = {"role": message.role, "content": message.content}
    if message.thinking:
        turn["reasoning_content"] = turn["thinking"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    if message.tool_name:
        turn["name"] = message.tool_name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _template_call(call: CalledTool) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _transcript(messages: list[Json]) -> str:
    """For a model without a chat template."""
    turns = [f"{turn['role'].upper()}: {turn['content']}\n" for turn in messages]
    return "".join(turns) + "ASSISTANT:"
