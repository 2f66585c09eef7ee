"""Where the turns of rendered prompts begin, by the templates of several families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from mlxd.core.request import CalledTool, GenerationRequest, Message
from mlxd.ipc.messages import packed
from mlxd.worker.prefix.boundaries import LEAST_APART, MOST_BOUNDARIES, Outlines
from mlxd.worker.prefix.outline import Outline, message_at
from mlxd.worker.prompt import Prompter
from mlxd.worker.room import Room
from tests.support.model_maker import CHAT_TEMPLATE, Shape, _write_tokenizer

pytestmark = pytest.mark.mlx

ROOM = Room(1 << 20, 1 << 20)
EACH = "{% for message in messages %}"
LLAMA = (
    EACH
    + "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}<|eot_id|>"
    "{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GLM = EACH + "<|{{ message.role }}|>\n{{ message.content }}{% endfor %}<|assistant|>\n"
DEEPSEEK = (
    EACH + "{% if message.role == 'system' %}{{ message.content }}{% elif message.role == 'user' %}"
    "<｜User｜>{{ message.content }}{% else %}<｜Assistant｜>{{ message.content }}</s>{% endif %}"
    "{% endfor %}<｜Assistant｜>"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content ~ '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    + EACH
    + "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ said if loop.first else '' }}{{ message.content }}<end_of_turn>\n{% endfor %}"
    "<start_of_turn>model\n"
)
QWEN_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    + EACH
    + "{% if message.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
    "<tool>{{ message.content }}</tool>"
    "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}<|im_start|>assistant\n"
)
MARKS = {
    CHAT_TEMPLATE: (),
    LLAMA: ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    GLM: ("<|system|>", "<|user|>", "<|assistant|>"),
    DEEPSEEK: ("<｜User｜>", "<｜Assistant｜>"),
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    QWEN_TOOLS: (),
}
LONG = "The quick brown fox jumps over the lazy dog, and a server answers requests. " * 8
CONVERSATION = (
    Message("system", "You are a fox. " + LONG),
    Message("user", "hi"),
    Message("assistant", "Hello. " + LONG),
    Message("user", "Who jumps? " + LONG),
)
TOOL = {"type": "function", "function": {"name": "jump", "description": LONG, "parameters": {}}}


class Reader:
    def __init__(self, folder: Path, template: str) -> None:
        _write_tokenizer(folder, Shape(markers=MARKS.get(template, ()), template=template))
        tokenizer = mlx_lm.utils.load_tokenizer(folder)
        self.tokenizer: Any = tokenizer
        self.prompter = Prompter(tokenizer)
        self.outlines = Outlines(tokenizer)

    def outline(self, *messages: Message, **more: Any) -> tuple[Outline, list[int]]:
        request = GenerationRequest(model="m", messages=messages or None, **more)
        rendered = self.prompter.render(request, ROOM)
        ids = packed(rendered.tokens)
        return self.outlines.of(request, rendered.tokens, ids, rendered.text), rendered.tokens

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))


Make = Callable[[str], Reader]


@pytest.fixture(scope="module")
def reader_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Reader] = {}

    def make(template: str) -> Reader:
        if template not in made:
            made[template] = Reader(tmp_path_factory.mktemp("tokenizer"), template)
        return made[template]

    return make


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA, GLM, QWEN_TOOLS])
def test_each_message_begins_at_its_mark(reader_of: Make, template: str) -> None:
    reader = reader_of(template)
    outline, tokens = reader.outline(*CONVERSATION)
    assert len(outline.turns) == 4
    for message, at, to in zip(
        CONVERSATION, outline.turns, (*outline.turns[1:], len(tokens)), strict=True
    ):
        turn = reader.text(tokens[at:to])
        assert turn.startswith("<|")
        assert message.role in turn
        assert message.content.strip() in turn
    assert outline.shared == outline.turns[1]


def test_boundaries_are_where_prompts_part(reader_of: Make) -> None:
    reader = reader_of(CHAT_TEMPLATE)
    outline, tokens = reader.outline(*CONVERSATION)
    last = max(n for n, token in enumerate(tokens) if token == tokens[outline.turns[0]])
    assert outline.boundaries == (outline.turns[1], outline.turns[3], last)
    assert reader.text(tokens[last:]) == "<|im_start|>assistant\n"
    further = (*CONVERSATION, Message("assistant", "The fox."), Message("user", LONG))
    later, more = reader.outline(*further)
    assert more[: outline.boundaries[-1]] == tokens[: outline.boundaries[-1]]
    assert later.boundaries[0] == outline.boundaries[0]
    assert len(later.boundaries) <= MOST_BOUNDARIES


def test_boundaries_that_are_near_each_other_are_one(reader_of: Make) -> None:
    short = [Message("user" if n % 2 == 0 else "assistant", "yes") for n in range(7)]
    outline, _ = reader_of(CHAT_TEMPLATE).outline(CONVERSATION[0], *short)
    assert outline.boundaries[0] == outline.shared
    gaps = [b - a for a, b in zip((0, *outline.boundaries), outline.boundaries, strict=False)]
    assert min(gaps) >= LEAST_APART


def test_nothing_a_user_said_is_shared(reader_of: Make) -> None:
    for template in MARKS:
        reader = reader_of(template)
        for messages in (CONVERSATION, CONVERSATION[1:], CONVERSATION[3:]):
            outline, tokens = reader.outline(*messages)
            shared = reader.text(tokens[: outline.shared])
            assert "jumps? " not in shared
            assert "hi" not in shared.replace("<|im_start|>", "")
            assert "Hello" not in shared


@pytest.mark.parametrize("template", list(MARKS))
def test_a_systems_turn_is_shared_whoever_asks(reader_of: Make, template: str) -> None:
    """Wherever the template puts it."""
    reader = reader_of(template)
    one, tokens = reader.outline(*CONVERSATION)
    other, others = reader.outline(CONVERSATION[0], Message("user", "Something else"))
    assert one.shared == other.shared
    assert tokens[: one.shared] == others[: one.shared]
    assert len(reader.text(tokens[: one.shared])) > len(LONG)
    assert one.boundaries[0] == one.shared


def test_without_marks_the_text_tells(reader_of: Make) -> None:
    template = EACH + "{{ message.role.upper() }}: {{ message.content }}\n{% endfor %}ASSISTANT:"
    reader = reader_of(template)
    outline, tokens = reader.outline(*CONVERSATION)
    assert reader.text(tokens[: outline.shared]).endswith("USER: ")
    assert outline.boundaries == (outline.shared,)


def test_tools_are_shared_where_they_stand_in_a_users_turn(reader_of: Make) -> None:
    template = CHAT_TEMPLATE.replace(
        "{{ message.content }}",
        "{% if tools and loop.index == 2 %}{{ tools | tojson }}\n{% endif %}{{ message.content }}",
    )
    reader = reader_of(template)
    plain, _ = reader.outline(*CONVERSATION)
    outline, tokens = reader.outline(*CONVERSATION, tools=(TOOL,))
    shared = reader.text(tokens[: outline.shared])
    assert outline.shared > plain.shared
    assert "parameters" in shared
    assert outline.turns[1] == plain.turns[1]


def test_what_a_template_makes_of_a_users_words_is_not_taken_for_the_tools(reader_of: Make) -> None:
    """They are found as they were sent in a later turn only."""
    template = CHAT_TEMPLATE.replace(
        "{{ message.content }}",
        "{{ message.content | upper if loop.first else message.content }}",
    )
    reader = reader_of(template)
    asked = Message("user", "a secret " + LONG)
    outline, tokens = reader.outline(asked, asked, tools=(TOOL,))
    assert "SECRET" not in reader.text(tokens[: outline.shared])


def test_results_of_tools_may_share_a_turn(reader_of: Make) -> None:
    reader = reader_of(QWEN_TOOLS)
    call = CalledTool("jump", {}, "1")
    messages = (
        *CONVERSATION,
        Message("assistant", "", tool_calls=(call, call)),
        Message("tool", "over " + LONG, tool_call_id="1"),
        Message("tool", "the dog " + LONG, tool_call_id="1"),
        Message("assistant", "Done."),
        Message("user", "Thanks."),
    )
    outline, tokens = reader.outline(*messages, tools=(TOOL,))
    assert len(outline.turns) == len(messages)
    assert outline.turns[5] == outline.turns[6]
    assert reader.text(tokens[outline.turns[5] : outline.turns[7]]).startswith(
        "<|im_start|>user<tool>over "
    )
    assert reader.text(tokens[outline.turns[8] :]).startswith("<|im_start|>user\nThanks.")


def test_a_tokenizer_may_raise_for_names_that_it_has_not() -> None:
    class Own:
        unk_token_id = None

        def convert_tokens_to_ids(self, name: str) -> int:
            return {"<|im_start|>": 7}[name]

        def decode(self, tokens: list[int]) -> str:
            return "user\n"

    tokenizer: Any = Own()
    request = GenerationRequest(model="m", messages=CONVERSATION[3:])
    outline = Outlines(tokenizer).of(request, [5, 7, 6], packed([5, 7, 6]))
    assert (outline.turns, outline.shared) == ((1,), 1)


def test_a_token_belongs_to_a_message() -> None:
    assert [message_at((0, 10, 10, 20), token) for token in (0, 9, 10, 19, 30)] == [0, 0, 2, 2, 3]
    assert message_at((5, 10), 4) == message_at((), 4) == -1


def test_of_a_raw_prompt_nothing_is_known_but_its_marks(reader_of: Make) -> None:
    reader = reader_of(CHAT_TEMPLATE)
    _, tokens = reader.outline(*CONVERSATION)
    request = GenerationRequest(model="m", text="x")
    raw = reader.outlines.of(request, tokens, packed(tokens), "x")
    assert (raw.shared, raw.turns) == (0, ())
    assert len(raw.boundaries) == 2
    assert reader.outlines.of(request, [5] * 200, packed([5] * 200), "x") == Outline()


def test_of_what_another_worker_rendered_the_tokens_tell(reader_of: Make) -> None:
    reader = reader_of(LLAMA)
    outline, tokens = reader.outline(*CONVERSATION)
    request = GenerationRequest(model="m", messages=CONVERSATION)
    assert reader.outlines.of(request, tokens, packed(tokens)) == outline


def test_a_mark_that_the_system_says_itself_shares_less(reader_of: Make) -> None:
    reader = reader_of(CHAT_TEMPLATE)
    system = replace(CONVERSATION[0], content=f"{LONG}<|im_start|>user\nhi<|im_end|>\n{LONG}")
    outline, tokens = reader.outline(system, *CONVERSATION[1:])
    assert reader.text(tokens[: outline.shared]).count("<|im_start|>") == 1
