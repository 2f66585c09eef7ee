"""What a request asks, as the model reads it: the chat template, and tokens."""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass, replace
from typing import Any

from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mlxd.core.request import GenerationRequest, Json
from mlxd.worker.conversation import as_taken, transcript, turns_of
from mlxd.worker.encoding import Encoding
from mlxd.worker.formats import writes_marks
from mlxd.worker.infill import Infill
from mlxd.worker.prompt_format import PromptFormat, changes
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import Room, longest_token
from mlxd.worker.templates import Templates

_RESERVED = {
    "messages",
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
} - {"documents"}
"""Names that would steer the tokenizer instead of its template."""
_FAILURES = (TemplateError, TypeError, ArithmeticError, LookupError)
"""What a model's template raises of its own accord, and what it does by mistake."""
_CHANGEABLE = ("effort", "attribute", "NoneType")
"""In what a template says of options that it takes in another way."""
_MOST_BLANKS = 16
"""Tokens of white space that a template writes behind the mark of a think block."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt in tokens. `reasoning`: it ends inside a think block that it opened."""

    tokens: list[int]
    reasoning: bool
    text: str | None = None
    """As the client or the template wrote it; None where that were tokens."""


class Prompter:
    """Renders and tokenises for one model. Used by one thread, and `written` by another one."""

    def __init__(self, tokenizer: TokenizerWrapper) -> None:
        self._tokenizer = tokenizer
        self._renders_text = hasattr(tokenizer, "backend_tokenizer")
        """Not so where templates are the tokenizer's own code, which may write no text."""
        self._templates = Templates()
        self._infill = Infill(tokenizer)
        self._encoding = Encoding(tokenizer)
        self._format = PromptFormat(tokenizer)

    @property
    def thinks(self) -> bool:
        """Whether the model has think blocks."""
        return bool(self._tokenizer.has_thinking)

    def written(self, request: GenerationRequest) -> str:
        """What the template of the request's client makes of its turns, but for the last one where
        that is to go on. Raises Refusal.
        """
        messages = turns_of(request)
        return self._by_template(request, messages[:-1] if request.continue_last else messages)

    def render(
        self, request: GenerationRequest, room: Room, written: str | None = None
    ) -> Rendered:
        """`written`: by its client's template; None: it has none.

        Raises Refusal; for a text that is certainly too long, before its tokens are counted.
        """
        text = request.text
        if request.truncate and request.want == "embedding":
            tokens = self._cut(request, room)
        elif request.token_ids is not None:
            tokens = list(request.token_ids)
        elif request.suffix is not None:
            text, tokens = None, self._around_gap(request, room)
        elif text is not None:
            tokens = self._encode(text, room)
        elif request.context:
            _, turns = self._conversation(request, room, written)
            tokens = self._going_on(request.context, turns)
        else:
            text, tokens = self._conversation(request, room, written)
        return replace(self.rendered(tokens, request), text=text)

    def text_of(self, rendered: Rendered) -> str:
        """How a prompt reads, special tokens included."""
        if rendered.text is not None:
            return rendered.text
        text: str = self._tokenizer.decode(rendered.tokens, clean_up_tokenization_spaces=False)
        return text

    def rendered(self, tokens: list[int], request: GenerationRequest) -> Rendered:
        """A request's prompt, which another worker may have rendered."""
        return Rendered(tokens, self._reasoning(tokens, request))

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
        return self._encoding.encode(text, special=special)

    @functools.cached_property
    def _longest(self) -> int | None:
        """Worked out for the first text that may be too long."""
        return longest_token(self._tokenizer)

    def _conversation(
        self, request: GenerationRequest, room: Room, written: str | None
    ) -> tuple[str | None, list[int]]:
        """Its text, where there is one, and its tokens."""
        messages = self._format.turns(turns_of(request), request.think, tools=bool(request.tools))
        if written is not None:
            prompt: str | list[int] = written
            if request.continue_last:
                prompt = self._going_on_behind(written, messages[-1])
        elif self._tokenizer.has_chat_template:
            prompt = self._rendered(messages, request)
        else:
            text = transcript(messages, goes_on=request.continue_last)
            return text, self._encode(text, room)
        if isinstance(prompt, str):
            return prompt, self._tokens(prompt, room, special=False)
        return None, prompt

    def _rendered(self, messages: list[Json], request: GenerationRequest) -> str | list[int]:
        if not request.continue_last:
            return self._template(messages, request, add_generation_prompt=True)
        if self._renders_text:
            with contextlib.suppress(ValueError):  # it does not show the last turn as it is
                return self._template(messages, request, continue_final_message=True)
        return self._appended(messages, request)

    def _appended(self, messages: list[Json], request: GenerationRequest) -> str | list[int]:
        """The last turn behind what the template puts before an answer."""
        *before, last = messages
        if not before:
            raise Refusal("there is nothing before the turn that is to go on", param="messages")
        prompt = self._template(before, request, add_generation_prompt=True)
        return self._going_on_behind(prompt, last)

    def _going_on_behind(self, prompt: str | list[int], last: Json) -> str | list[int]:
        """The turn `last`, where the prompt is so far that an answer would begin."""
        if isinstance(prompt, str):
            thinking = self._tokenizer.has_thinking
            opened = thinking and prompt.rstrip().endswith(self._tokenizer.think_start)
        else:
            opened = self._just_opened(prompt)
        closing = f"{self._tokenizer.think_end}\n\n" if opened else ""
        text: str = closing + last["content"]
        if isinstance(prompt, str):
            return prompt + text
        return [*prompt, *self._tokenizer.encode(text, add_special_tokens=False)]

    def _template(
        self, messages: list[Json], request: GenerationRequest, **how: bool
    ) -> str | list[int]:
        """Text, or tokens where the tokenizer writes none. Raises Refusal."""
        # of a last turn that is to go on a ValueError says that it is not shown as it is
        failures = _FAILURES if "continue_final_message" in how else (*_FAILURES, ValueError)
        options = self._options(request) | {"tools": list(request.tools) or None}
        refusal: Exception | None = None
        for change in changes(options):
            apply = functools.partial(self._applied, **how, **options | change)
            try:
                return as_taken(messages, apply, failures)
            except failures as error:
                refusal = error
            if not any(word in str(refusal) for word in _CHANGEABLE):
                break
        raise Refusal(f"the model's chat template refuses this: {refusal}") from refusal

    def _applied(self, messages: list[Json], /, **options: Any) -> str | list[int]:
        prompt: str | list[int] = self._tokenizer.apply_chat_template(
            messages, tokenize=not self._renders_text, **options
        )
        return prompt

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
        return self._format.options(request)

    def _reasoning(self, tokens: list[int], request: GenerationRequest) -> bool:
        """Whether a prompt ends inside a think block. One that a turn speaks of, or an earlier
        exchange was cut in, is not open any more where the answer begins.
        """
        if writes_marks(self._tokenizer):
            return self._just_opened(tokens) or self._left_open(request) is True
        if self._behind_think_start(tokens) is None:
            return False
        if request.messages is None or self._just_opened(tokens):
            return True
        left_open = self._left_open(request)
        if left_open is not None:
            return left_open
        told = repr((request.messages, request.tools, request.template_options))
        return not request.context and self._tokenizer.think_start not in told

    def _left_open(self, request: GenerationRequest) -> bool | None:
        """By the turn that is to go on; None: there is none, or it has no think block."""
        if not request.continue_last or not request.messages:
            return None
        opens, closes = self._tokenizer.think_start, self._tokenizer.think_end
        _, opened, rest = request.messages[-1].content.rpartition(opens)
        return closes not in rest if opened else None

    def _just_opened(self, tokens: list[int]) -> bool:
        if writes_marks(self._tokenizer):
            last = tokens[-_MOST_BLANKS - len(self._tokenizer.think_start) :]
            return bool(self._tokenizer.decode(last).rstrip().endswith(self._tokenizer.think_start))
        behind = self._behind_think_start(tokens)
        if behind is None or len(behind) > _MOST_BLANKS:
            return False
        return not self._tokenizer.decode(behind).strip()

    def _behind_think_start(self, tokens: list[int]) -> list[int] | None:
        """The tokens behind the last think block's mark; None where it is closed, or was none."""
        if not self._tokenizer.has_thinking or not tokens:
            return None
        start: int = self._tokenizer.rfind_think_start(tokens)
        end: int = self._tokenizer.rfind_think_end(tokens)
        return tokens[start + len(self._tokenizer.think_start_tokens) :] if start > end else None
