"""Conversations that templates do not take as they are: answers begun, late instructions."""

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


# As Qwen3.5 and Gemma have it.
STRICT = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}"
    "{% if messages[-1].content == 'No.' %}{{ raise_exception('Say yes.') }}{% endif %}"
) + CHAT_TEMPLATE


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


SYSTEM = Message("system", "Be short.")


def test_a_later_turn_of_the_systems_stays_where_it_is(prompter_of: Any) -> None:
    text, _ = prompt(prompter_of(CHAT_TEMPLATE), ASKED, SYSTEM, continue_last=False)
    assert "<|im_start|>system\nBe short.<|im_end|>" in text


def test_where_a_template_does_not_take_it_there_it_is_the_users(prompter_of: Any) -> None:
    turns = (SYSTEM, ASKED, SYSTEM, Message("assistant", "So."), SYSTEM)
    text, _ = prompt(prompter_of(STRICT), *turns, continue_last=False)
    assert text == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHow?\nBe short.<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nBe short.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("before", [(), (ASKED, SYSTEM, Message("assistant", "Hm."))])
def test_a_template_that_refuses_all_the_same_says_why(prompter_of: Any, before: Any) -> None:
    turns = (*before, Message("user", "No."))
    with pytest.raises(Refusal, match="Say yes"):
        prompt(prompter_of(STRICT), *turns, continue_last=False)


def test_what_no_template_shows_cannot_go_on_alone(prompter_of: Any) -> None:
    with pytest.raises(Refusal, match="nothing before the turn"):
        prompt(prompter_of(HIDES), BEGUN[1])
