"""Answers and prompts of gpt-oss, whose format mlx-lm takes for text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from mlxd.control.model_files import _capabilities
from mlxd.core.request import CalledTool, GenerationRequest, Message
from mlxd.worker.formats import complete
from mlxd.worker.harmony import Harmony
from mlxd.worker.markup import Markup
from mlxd.worker.prompt import Prompter
from mlxd.worker.room import Room
from tests.support.model_maker import Shape, _write_tokenizer

pytestmark = pytest.mark.mlx

MARKS = (
    "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>", "<|constrain|>",
)  # fmt: skip
THOUGHT = "<|channel|>analysis<|message|>a < b<|end|>"
NEXT = "<|start|>assistant"
CALL = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>"
HEAD = "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>"
FINAL = "<|channel|>final<|message|>"
THINKS, SAYS = ("reasoning", "a < b"), ("text", "So.")
NOW = CalledTool("now", {"zone": "é\n{<"})
ZONE = '{"zone": "é\\n{<"}'
TOOL: Any = {"type": "function", "function": {"name": "now", "parameters": {}}}
# Much as gpt-oss has it.
TEMPLATE = (
    "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{% set last = namespace(name=none) %}<|start|>system<|message|>Reasoning: "
    "{{ reasoning_effort }}<|end|>{% for m in messages %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{% if m.content and m.thinking %}"
    "{{ raise_exception('not both') }}{% endif %}{% set c = m.tool_calls[0].function %}"
    "{% set last.name = c.name %}{% if m.content or m.thinking %}<|start|>assistant<|channel|>"
    "analysis<|message|>{{ m.content or m.thinking }}<|end|>{% endif %}<|start|>assistant to="
    "functions.{{ c.name }}<|channel|>commentary json<|message|>{{ c.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "<|end|>{% elif m.role == 'tool' %}<|start|>functions.{{ last.name }} to=assistant<|channel|>"
    "commentary<|message|>{{ m.content | tojson }}<|end|>{% elif m.role == 'user' %}<|start|>user"
    "<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# tools #}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("oss")
    _write_tokenizer(folder, Shape(markers=MARKS, template=TEMPLATE))
    loaded = mlx_lm.utils.load_tokenizer(folder, {})
    complete(loaded)
    return loaded


def said(
    text: str, *, size: int = 1, tools: bool = True, reasoning: bool = False, cut: bool = False
) -> tuple[list[Any], int]:
    """Text and reasoning that follow each other as one; and how many calls were none."""
    harmony = Harmony((TOOL,) if tools else (), reasoning=reasoning)
    parts: list[Any] = []
    for at in range(0, len(text), size):
        parts += harmony.feed(text[at : at + size])
    joined: list[Any] = []
    for part in [*parts, *harmony.finish(truncated=cut)]:
        if isinstance(part, tuple) and joined and joined[-1][:1] == part[:1]:
            joined[-1] = (part[0], joined[-1][1] + part[1])
        else:
            joined.append(part if isinstance(part, tuple) else (part,))
    return [part if len(part) == 2 else part[0] for part in joined], harmony.malformed


CASES: list[tuple[str, list[Any]]] = [
    (f"{FINAL}So.", [SAYS]),
    (f"{FINAL}So.<|return|>", [SAYS]),
    (f"{THOUGHT}{NEXT}{FINAL}So.<|end|>", [THINKS, SAYS]),
    (f"{THOUGHT}{NEXT}{CALL}{ZONE}<|call|>", [THINKS, NOW]),
    (f"{THOUGHT}{HEAD}{ZONE}", [THINKS, NOW]),
    (f" to=functions.now<|channel|>commentary json<|message|>{ZONE}<|call|>", [NOW]),
    (f"{CALL}{{}}<|call|>{NEXT}{CALL}{ZONE}<|call|>", [CalledTool("now", {}), NOW]),
    (f"{CALL}<|call|>", [CalledTool("now", {})]),
    (
        f"<|channel|>commentary<|message|>I look.<|end|>{NEXT}{CALL}{ZONE}<|call|>",
        [("text", "I look."), NOW],
    ),
    (f"{NEXT}{FINAL}So.", [SAYS]),
    (f"{FINAL}`<|end|>` ends it, <|call|> too.", [("text", "`<|end|>` ends it, <|call|> too.")]),
    (f"{FINAL}<|start|>assistant is it", [("text", "<|start|>assistant is it")]),
    ("So.", [SAYS]),
    (" to", [("text", " to")]),
    ("", []),
]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("text", "parts"), CASES)
def test_messages_are_told_apart(text: str, parts: list[Any], size: int) -> None:
    assert said(text, size=size) == (parts, 0)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_is_no_call_is_said_as_it_stands_and_counted(size: int) -> None:
    for body in ('{"zone": ', "[1]", "print(1)"):
        assert said(f"{CALL}{body}<|call|>", size=size) == ([("text", CALL + body)], 1)


def test_a_call_cut_by_a_length_limit_is_text() -> None:
    assert said(f"{THOUGHT}{NEXT}{CALL}{{}}", cut=True) == ([THINKS, ("text", CALL + "{}")], 0)


def test_thinking_cut_by_a_length_limit_is_thinking() -> None:
    text = "<|channel|>analysis<|message|>a < b"
    assert said(text, cut=True) == ([THINKS], 0)
    assert said(f"{text}<|end", cut=True) == ([("reasoning", "a < b<|end")], 0)
    assert said(f"{text}<|end|><|start|>assistant<|chan", cut=True)[0] == [THINKS]


def test_a_prompt_may_have_opened_the_thinking() -> None:
    assert said(f"a < b<|end|>{NEXT}{FINAL}So.", reasoning=True) == ([THINKS, SAYS], 0)


def test_without_tools_a_call_is_text() -> None:
    assert said(f"{CALL}{ZONE}<|call|>", tools=False) == ([("text", ZONE)], 0)


def test_a_header_without_an_end_is_text() -> None:
    text = "<|channel|>" + "x" * 1000
    assert said(text) == ([("text", text)], 0)


def test_words_are_said_as_they_come() -> None:
    harmony = Harmony((), reasoning=False)
    assert harmony.feed(f"{FINAL}Hel") == [("text", "Hel")]
    assert harmony.feed("lo <|") == [("text", "lo ")]
    assert harmony.holding
    assert harmony.feed("x") == [("text", "<|x")]


def test_words_without_a_mark_are_not_searched_for_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []

    def look(text: str, mark: str) -> int:
        looked.append(text)
        return 0

    harmony = Harmony((), reasoning=False)
    harmony.feed(FINAL)
    monkeypatch.setattr("mlxd.worker.harmony.overlap", look)
    assert harmony.feed("Hello") == [("text", "Hello")]
    assert looked == []
    harmony.feed("a < b")
    assert looked


def test_its_marks_are_known(tokenizer: Any) -> None:
    markup = Markup(tokenizer)
    assert markup.thinking
    assert isinstance(markup.separator((TOOL,), reasoning=False), Harmony)
    ends = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<|call|>", "<|return|>")}
    assert ends <= tokenizer.eos_token_ids
    found = _capabilities("tools <|channel|>analysis", False, inserts=False)
    assert {"tools", "thinking"} <= {*found}


def prompt(tokenizer: Any, *turns: Message, **fields: Any) -> str:
    asked = GenerationRequest(model="m", messages=(Message("user", "Go."), *turns), **fields)
    rendered = Prompter(tokenizer).render(asked, Room(4096, 4096))
    assert not rendered.reasoning
    return str(rendered.text)


@pytest.mark.parametrize(
    ("think", "effort"),
    [(None, "medium"), (True, "medium"), (False, "low"), ("high", "high"), ("max", "high")],
)
def test_an_effort_is_one_of_those_that_it_knows(tokenizer: Any, think: Any, effort: str) -> None:
    assert f"Reasoning: {effort}<" in prompt(tokenizer, think=think)
    if isinstance(think, str):
        options = {"reasoning_effort": think}
        assert f"Reasoning: {effort}<" in prompt(tokenizer, think=False, template_options=options)


def test_its_turns_have_one_call_and_thoughts_or_words(tokenizer: Any) -> None:
    calls = (CalledTool("now", {}, "1"), CalledTool("then", {}, "2"))
    answer = Message("assistant", "I look.", thinking="Hm.", tool_calls=calls)
    results = (Message("tool", "9", tool_call_id="2"), Message("tool", "8", tool_call_id="1"))
    text = prompt(tokenizer, answer, *results)
    assert text.partition("Go.<|end|>")[2] == (
        "<|start|>assistant<|channel|>analysis<|message|>Hm.\n\nI look.<|end|>"
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>"
        '<|start|>functions.now to=assistant<|channel|>commentary<|message|>"8"<|end|>'
        "<|start|>assistant to=functions.then<|channel|>commentary json<|message|>{}<|call|>"
        '<|start|>functions.then to=assistant<|channel|>commentary<|message|>"9"<|end|>'
        "<|start|>assistant"
    )
