"""Conversations whose last turn is the beginning of the answer."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.core.request import GenerationRequest, Message
from mlxd.worker.refusal import Refusal
from mlxd.worker.room import Room
from tests.support.model_maker import CHAT_TEMPLATE, THINKING, TOOLS, Shape
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx

ROOM = Room(4096, 4096)
ASKED = Message("user", "How?")
# As Qwen3 has it: the last answer has a think block, closed.
THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if loop.last and message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
TRIMS = CHAT_TEMPLATE.replace("message.content", "message.content | trim")
HIDES = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A:<think>{% endif %}"
)


@pytest.fixture(scope="module")
def prompter_of(model_of: MakeModel) -> Any:
    from mlx_lm.tokenizer_utils import load

    from mlxd.worker.prompt import Prompter

    folder = model_of(Shape(spread=3.0, markers=THINKING + TOOLS, template=THINKS))

    def prompter_of(template: str | None) -> Any:
        tokenizer = load(folder)
        tokenizer._tokenizer.chat_template = template
        tokenizer.has_chat_template = template is not None
        return Prompter(tokenizer), tokenizer

    return prompter_of


def prompt(made: Any, *messages: Message, continue_last: bool = True) -> tuple[str, bool]:
    """As the model reads it, and whether it begins in a think block."""
    prompter, tokenizer = made
    request = GenerationRequest(model="m", messages=messages, continue_last=continue_last)
    rendered = prompter.render(request, ROOM)
    return tokenizer.decode(rendered.tokens), rendered.reasoning


BEGUN = (ASKED, Message("assistant", "Like this: "))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT_TEMPLATE, "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nLike this: "),
        (TRIMS, "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nLike this:"),
        (
            THINKS,
            "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
            "Like this: ",
        ),
        (HIDES, "How?\nA:<think></think>\n\nLike this: "),
        (None, "USER: How?\nASSISTANT: Like this: "),
    ],
    ids=["plain", "trims", "thinks", "hides", "none"],
)
def test_the_answer_goes_on_behind_what_is_begun(
    prompter_of: Any, template: str | None, expected: str
) -> None:
    assert prompt(prompter_of(template), *BEGUN) == (expected, False)


def test_a_turn_that_is_not_to_go_on_is_closed(prompter_of: Any) -> None:
    text, reasoning = prompt(prompter_of(THINKS), *BEGUN, ASKED, continue_last=False)
    assert text.endswith("Like this: <|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
                         "<|im_start|>assistant\n<think>\n")  # fmt: skip
    assert reasoning


def test_without_a_template_an_answer_begins_as_before(prompter_of: Any) -> None:
    text, _ = prompt(prompter_of(None), ASKED, continue_last=False)
    assert text == "USER: How?\nASSISTANT:"


def test_what_no_template_shows_cannot_go_on_alone(prompter_of: Any) -> None:
    with pytest.raises(Refusal, match="nothing before the turn"):
        prompt(prompter_of(HIDES), BEGUN[1])
