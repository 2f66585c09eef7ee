"""What a request asks, as the model reads it: the chat template, and tokens."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mlxd.core.request import CalledTool, GenerationRequest, Json, Message
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import Room, longest_token

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
    text: str | None = None
    """As the client or the template wrote it; None where that were tokens."""


class Prompter:
    """Renders and tokenises for one model. Used by one thread."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._renders_text = hasattr(tokenizer, "backend_tokenizer")
        """Not so where templates are the tokenizer's own code, which may write no text."""

    def render(self, request: GenerationRequest, room: Room) -> Rendered:
        """Raises Refusal; for a text that is certainly too long, before its tokens are counted."""
        text = request.text
        if request.truncate and request.want == "embedding":
            tokens = self._cut(request, room)
        elif request.token_ids is not None:
            tokens = list(request.token_ids)
        elif text is not None:
            tokens = self._encode(text, room)
        else:
            text, tokens = self._conversation(request, room)
        return replace(self.rendered(tokens), text=text)

    def text_of(self, rendered: Rendered) -> str:
        """How a prompt reads, special tokens included."""
        if rendered.text is not None:
            return rendered.text
        text: str = self._tokenizer.decode(rendered.tokens, clean_up_tokenization_spaces=False)
        return text

    def rendered(self, tokens: list[int]) -> Rendered:
        """A prompt that another worker has rendered."""
        return Rendered(tokens, self._reasoning(tokens))

    def added_before(self, rendered: Rendered) -> int:
        """How many of a text's tokens, the first ones, stand for none of it."""
        bos, text = self._tokenizer.bos_token, rendered.text
        added = bos and text is not None and not text.startswith(bos)
        return int(bool(added) and rendered.tokens[:1] == [self._tokenizer.bos_token_id])

    def _cut(self, request: GenerationRequest, room: Room) -> list[int]:
        """As much of an input as there is room for, with the special tokens around it."""
        if request.token_ids is not None:
            return list(request.token_ids[: room.most])
        text = request.text or ""
        if self._longest is not None:  # no more of it than could matter is looked at
            text = text[: 2 * room.most * self._longest]
        tokens: list[int] = self._tokenizer.encode(
            text, add_special_tokens=True, truncation=True, max_length=room.most
        )
        return tokens[: room.most]

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

    def _conversation(self, request: GenerationRequest, room: Room) -> tuple[str | None, list[int]]:
        """Its text, where there is one, and its tokens."""
        messages = [_template_message(message) for message in request.messages or ()]
        if not messages:
            raise Refusal("the conversation has no messages", param="messages")
        if not self._tokenizer.has_chat_template:
            text = _transcript(messages)
            return text, self._encode(text, room)
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
        if isinstance(prompt, str):
            return prompt, self._tokens(prompt, room, special=False)
        return None, prompt

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
