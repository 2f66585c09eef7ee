"""Thinking and calls of models whose format mlx-lm does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlxd.control.model_files import _capabilities
from mlxd.core.request import CalledTool, GenerationRequest, Message
from mlxd.worker.formats import complete
from mlxd.worker.grammar import Grammars
from mlxd.worker.markup import Markup
from mlxd.worker.prompt import Prompter
from mlxd.worker.room import Room
from mlxd.worker.sampling import Guard
from tests.support.model_maker import CHAT_TEMPLATE, Shape, _write_tokenizer
from tests.worker.test_grammar import drawn
from tests.worker.test_tool_formats import parts_of

pytestmark = pytest.mark.mlx

ONE = CalledTool("get_weather", {"city": 'Ulm "é"\n{<', "days": 3})
TWO = CalledTool("now", {})
_ONE = '{"city": "Ulm \\"é\\"\\n{<", "days": 3}'
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>")
_ENDS = "<｜tool▁call▁end｜>"
CALLS: dict[str, tuple[str, str]] = {
    "deepseek v3": (
        _DEEPSEEK[0],
        f"{_DEEPSEEK[0]}{_DEEPSEEK[1]}function{_DEEPSEEK[2]}get_weather\n```json\n{_ONE}\n```"
        f"{_ENDS}\n{_DEEPSEEK[1]}function{_DEEPSEEK[2]}now\n```json\n{{}}\n```{_ENDS}"
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek v3.1": (
        _DEEPSEEK[0],
        f"{_DEEPSEEK[0]}{_DEEPSEEK[1]}get_weather{_DEEPSEEK[2]}{_ONE}{_ENDS}"
        f"{_DEEPSEEK[1]}now{_DEEPSEEK[2]}{{}}{_ENDS}<｜tool▁calls▁end｜>",
    ),
    "nemotron": (
        "<TOOLCALL>",
        f'<TOOLCALL>[{{"name": "get_weather", "arguments": {_ONE}}}, '
        '{"name": "now", "arguments": {}}]</TOOLCALL>',
    ),
    "command": (
        "<|START_ACTION|>",
        '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        f'{_ONE}}},\n{{"tool_call_id": "1", "tool_name": "now", "parameters": {{}}}}\n]'
        "<|END_ACTION|>",
    ),
    "olmo": (
        "<function_calls>",
        '<function_calls>get_weather(city="Ulm \\"é\\"\\n{<", days=3)\nnow()</function_calls>',
    ),
    "hunyuan": (
        "<tool_calls>",
        f'<tool_calls>\n{{"name": "get_weather", "arguments": {_ONE}}}\n'
        '{"name": "now", "arguments": {}}\n</tool_calls>',
    ),
    "granite": (
        "<|tool_call|>",
        f'<|tool_call|>[{{"name": "get_weather", "arguments": {_ONE}}}, {{"name": "now"}}]',
    ),
    "apertus": (
        "<|tools_prefix|>",
        f'<|tools_prefix|>[{{"get_weather": {_ONE}}}, {{"now": {{}}}}]<|tools_suffix|>',
    ),
    "ernie": (
        "<tool_call>",
        f'<tool_call>\n{{"name": "get_weather", "arguments": {_ONE}}}\n</tool_call>'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "llama": (
        'Respond in the format {"name": function name, "parameters": its arguments}.',
        f'{{"name": "get_weather", "parameters": {_ONE}}}; {{"name": "now", "parameters": {{}}}}',
    ),
}
ENDS = {
    "deepseek v3": "<｜tool▁calls▁end｜>",
    "deepseek v3.1": "<｜tool▁calls▁end｜>",
    "nemotron": "</TOOLCALL>",
    "command": "<|END_ACTION|>",
    "olmo": "</function_calls>",
    "hunyuan": "</tool_calls>",
    "apertus": "<|tools_suffix|>",
    "ernie": "</tool_call>",
}
SEED = (
    "<seed:tool_call>\n<function=get_weather>\n<parameter=city>\n Ulm\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</seed:tool_call>"
)
NAMED: Any = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
)


def markup_of(folder: Path, words: str, *markers: str) -> Any:
    template = f"{{% if tools %}}{{{{ {words!r} }}}}{{% endif %}}{CHAT_TEMPLATE}"
    _write_tokenizer(folder, Shape(markers=markers, template=template))
    tokenizer = mlx_lm.utils.load_tokenizer(folder, {})
    complete(tokenizer)
    return Markup(tokenizer)


def parts(markup: Any, text: str, **how: Any) -> tuple[list[Any], int]:
    """The same however it is cut."""
    whole = parts_of(markup, [text], tools=NAMED, **how)
    for size in (1, 2, 7):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert parts_of(markup, pieces, tools=NAMED, **how) == whole
    return whole


@pytest.mark.parametrize("format", CALLS)
def test_calls_are_read(tmp_path: Path, format: str) -> None:
    words, said = CALLS[format]
    markup = markup_of(tmp_path, f"{words} {ENDS.get(format, '')}")
    called, malformed = parts(markup, said)
    assert ([part for part in called if part != ("text", "\n")], malformed) == ([ONE, TWO], 0)


@pytest.mark.parametrize("format", sorted(CALLS.keys() - {"ernie", "granite"}))
def test_a_call_that_a_limit_cut_is_said_as_it_stands(tmp_path: Path, format: str) -> None:
    words, said = CALLS[format]
    cut = said[:-5]
    markup = markup_of(tmp_path, f"{words} {ENDS.get(format, '')}")
    assert parts(markup, cut, truncated=True) == ([("text", cut)], 0)


def test_calls_are_read_where_the_vocabulary_alone_tells_of_them(tmp_path: Path) -> None:
    """As Phi-4-mini has it."""
    markup = markup_of(tmp_path, "<|tool|>", "<|tool_call|>", "<|/tool_call|>")
    said = '<|tool_call|>[{"name": "now", "arguments": {}}]<|/tool_call|>'
    assert parts(markup, said) == ([TWO], 0)


def test_seeds_calls_are_qwens_between_other_marks(tmp_path: Path) -> None:
    markup = markup_of(
        tmp_path, "<seed:tool_call></seed:tool_call>", "<seed:think>", "</seed:think>"
    )
    thought = ("reasoning", "hm")
    call = CalledTool("get_weather", {"city": " Ulm", "days": 3})
    said = f"<seed:think>hm</seed:think>{SEED}"
    assert parts(markup, said) == ([thought, call], 0)


BARE = CALLS["llama"][0]


@pytest.mark.parametrize(
    "said",
    [
        '{"city": "Ulm"}',
        '{"name": "Ulm", "parameters": {}}',
        '{"name": "now", "parameters": {}} is what I would call.',
        '[1] as {"name": "now"} says',
        'I call {"name": "now", "parameters": {}}',
        '{"name": "now", "parameters": []}',
        '{"name": "now", "zone": "UTC"}',
        "<|python",
        "{",
        "[",
        "",
    ],
)
def test_json_that_calls_nothing_is_what_was_asked_for(tmp_path: Path, said: str) -> None:
    expected = [("text", said)] if said else []
    assert parts(markup_of(tmp_path, BARE), said) == (expected, 0)


def test_bare_calls_in_a_list_or_behind_a_mark(tmp_path: Path) -> None:
    markup = markup_of(tmp_path, BARE)
    for said in (
        '<|python_tag|>{"name": "now", "parameters": {}}',
        '\n[{"name": "now", "arguments": {}}]\n',
        '{"type": "function", "function": {"name": "now", "arguments": "{}"}}',
    ):
        assert parts(markup, said) == ([TWO], 0)


def test_words_that_are_no_bare_call_do_not_wait(tmp_path: Path) -> None:
    separator = markup_of(tmp_path, BARE).separator(NAMED, reasoning=False)
    assert separator.feed("Hel") == [("text", "Hel")]
    assert separator.feed("lo {") == [("text", "lo {")]
    separator = markup_of(tmp_path, BARE).separator(NAMED, reasoning=False)
    assert separator.feed('{"answer') == []
    assert separator.feed('": 4') == [("text", '{"answer": 4')]


@pytest.mark.parametrize(
    "said",
    ['{"name": "B', '[{"name": "nowhere"', '{"type": "b', '{"id": 5', "[" + " " * 500, " " * 500],
)
def test_json_streams_once_it_can_call_nothing(tmp_path: Path, said: str) -> None:
    separator = markup_of(tmp_path, BARE).separator(NAMED, reasoning=False)
    shown = [part for each in said for part in separator.feed(each)]
    assert "".join(text for _, text in shown) == said


@pytest.mark.parametrize(
    ("opens", "closes"),
    [
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
    ],
)
def test_thinking_is_told_from_the_answer(tmp_path: Path, opens: str, closes: str) -> None:
    markup = markup_of(tmp_path, f"{opens} {closes}", opens, closes)
    expected = [("reasoning", "a < b"), ("text", "So.")]
    assert markup.thinking
    assert parts(markup, f"{opens}a < b{closes}So.") == (expected, 0)
    assert "thinking" in _capabilities(f"{opens} {closes}", False, inserts=False)


def test_marks_of_thinking_may_be_written_like_any_text(tmp_path: Path) -> None:
    """As Granite 3.3 does: its vocabulary has none."""
    markup = markup_of(tmp_path, "Think between <think></think>.")
    expected = [("reasoning", "hm"), ("text", "So.")]
    assert parts(markup, "<think>hm</think>So.") == (expected, 0)


# As tiktoken cuts: line breaks go with what is before them.
_CUTS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
_MARKED = "hm.</think>\n\n<think>\nx</think>\n <think> and </think>. "
OPENED = CHAT_TEMPLATE + "{{ '<think>\n' if enable_thinking else '<think>\n\n</think>\n\n' }}"
SPOKEN_OF = "Between\n<think> and </think>.\n" + CHAT_TEMPLATE


def written_marks(folder: Path, template: str) -> Any:
    """A tokenizer for which marks of thinking are text like any other."""
    _write_tokenizer(folder, Shape(template=template))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_MARKED] * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    loaded = mlx_lm.utils.load_tokenizer(folder, {})
    complete(loaded)
    return loaded


@pytest.mark.parametrize(
    ("template", "think", "said", "reasoning"),
    [
        (OPENED, True, "Go.", True),
        (OPENED, False, "Go.", False),
        (SPOKEN_OF, True, "Go.", False),
        (SPOKEN_OF, True, "What is\n<think> for?", False),
    ],
)
def test_a_prompt_that_speaks_of_written_marks_opens_no_thinking(
    tmp_path: Path, template: str, think: bool, said: str, reasoning: bool
) -> None:
    prompter = Prompter(written_marks(tmp_path, template))
    asked = GenerationRequest(model="m", messages=(Message("user", said),), think=think)
    assert prompter.render(asked, Room(4096, 4096)).reasoning is reasoning


def test_a_turn_that_goes_on_may_have_written_marks(tmp_path: Path) -> None:
    prompter = Prompter(written_marks(tmp_path, SPOKEN_OF))
    for said, reasoning in (("<think>\nhm", True), ("<think>\nhm.</think>\n\nSo", False)):
        turns = (Message("user", "Go."), Message("assistant", said))
        asked = GenerationRequest(model="m", messages=turns, continue_last=True)
        assert prompter.render(asked, Room(4096, 4096)).reasoning is reasoning


def test_a_grammar_begins_behind_a_written_mark_however_that_is_cut(tmp_path: Path) -> None:
    tokenizer = written_marks(tmp_path, SPOKEN_OF)
    turns = (Message("user", "Go."),)
    asked = GenerationRequest(model="m", messages=turns, format={"type": "object"})
    grammar = Grammars(tokenizer, 512).compile(asked, reasoning=False, may_think=True)
    for thought in ("<think>\nhm.</think>\n\n", "<think>\nx</think>{"):
        said = drawn(tokenizer, grammar(Guard(), []), thought, limit=30)
        assert said.partition("</think>")[2].startswith("{")


def test_a_frame_around_what_is_said_is_no_part_of_it(tmp_path: Path) -> None:
    marks = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
    markup = markup_of(tmp_path, "", *marks)
    said = f"{marks[0]}hm{marks[1]}{marks[2]}So.{marks[3]}"
    assert parts(markup, said) == ([("reasoning", "hm"), ("text", "So.")], 0)
