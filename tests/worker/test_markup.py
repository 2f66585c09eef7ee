"""Reasoning and tool calls are told from text, wherever the tokens were cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from mlxd.core.request import CalledTool
from mlxd.ipc.messages import Call, Logprob, Piece, Reasoning, Text
from tests.support.model_maker import THINKING, TOOL_TEMPLATE, TOOLS, Shape
from tests.worker.conftest import MakeModel

if TYPE_CHECKING:
    from mlxd.worker.logprobs import Scorer

pytestmark = pytest.mark.mlx

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


class Script:
    """A detokenizer whose tokens are the characters, or pieces, of a text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, token: int) -> str:
        return self.pieces[token]

    def finish(self) -> str:
        return ""


class Told:
    """A scorer to which all tokens are as likely."""

    def score(self, token: int, row: Any) -> Logprob:
        return Logprob(str(token), b"", 0.0)


@pytest.fixture(scope="module")
def markup(model_of: MakeModel) -> Any:
    from mlx_lm.tokenizer_utils import load

    from mlxd.worker.markup import Markup

    return Markup(load(model_of(Shape(markers=THINKING + TOOLS, template=TOOL_TEMPLATE))))


def said(
    markup: Any,
    text: str,
    *,
    size: int = 1,
    tools: bool = True,
    reasoning: bool = False,
    stop: tuple[str, ...] = (),
    truncated: bool = False,
) -> list[Piece]:
    from mlxd.worker.answer import Answer, joined
    from mlxd.worker.stops import StopStrings

    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    separator = markup.separator((TOOL,) if tools else (), reasoning=reasoning)
    answer = Answer(1, Script(pieces), separator, StopStrings(stop), None, calls=tools)
    out: list[Piece] = []
    for token in range(len(pieces)):
        answer.take(token, None, out)
        if answer.stopped is not None:
            break
    answer.finish(out, truncated=truncated)
    return joined(out)


ADD = Call(1, "add", {"a": 1})
CASES: list[tuple[str, list[Piece]]] = [
    ("plain", [Text(1, "plain")]),
    ("<think>hm</think>so", [Reasoning(1, "hm"), Text(1, "so")]),
    (f"a{CALL}b", [Text(1, "a"), ADD, Text(1, "b")]),
    (CALL + CALL, [ADD, ADD]),
    (f"\n\n{CALL}\n{CALL}\n", [ADD, ADD]),
    (f"a\n{CALL}\n\nb", [Text(1, "a\n"), ADD, Text(1, "\n\nb")]),
    (f"<think>hm</think>\n\n{CALL}", [Reasoning(1, "hm"), ADD]),
    ("\n\na", [Text(1, "\n\na")]),
    ("\n\n", [Text(1, "\n\n")]),
    ("\n<think>hm</think>a", [Text(1, "\n"), Reasoning(1, "hm"), Text(1, "a")]),
    (f"<think>hm{CALL}", [Reasoning(1, "hm"), ADD]),
    (
        f"<think>hm{CALL}\n</think>so{CALL}</think>",
        [
            Reasoning(1, "hm"),
            ADD,
            Text(1, "\nso"),
            ADD,
            Text(1, "</think>"),
        ],
    ),
    (
        f"<think>hm{CALL}{CALL}<think>x</think>y",
        [
            Reasoning(1, "hm"),
            ADD,
            ADD,
            Reasoning(1, "x"),
            Text(1, "y"),
        ],
    ),
    ("Write <think>x</think>.", [Text(1, "Write <think>x</think>.")]),
    (f"\n`<think>`{CALL}\n<think>hm</think>", [Text(1, "\n`<think>`"), ADD, Reasoning(1, "hm")]),
    (f"a <think>{CALL}b <think>", [Text(1, "a <think>"), ADD, Text(1, "b <think>")]),
    ("<think>hm</think>The mark <think>", [Reasoning(1, "hm"), Text(1, "The mark <think>")]),
    ("a < b <tool", [Text(1, "a < b <tool")]),
    ("<tool_call>oops</tool_call>!", [Text(1, "<tool_call>oops</tool_call>!")]),
    ("<tool_call>null</tool_call>", [Text(1, "<tool_call>null</tool_call>")]),
    ("<tool_call>[]</tool_call>", [Text(1, "<tool_call>[]</tool_call>")]),
    ('<tool_call>{"name": 5}</tool_call>', [Text(1, '<tool_call>{"name": 5}</tool_call>')]),
    ('<tool_call>{"name": "now"}</tool_call>', [Call(1, "now", {})]),
    (
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [ADD],
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        [Text(1, '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>')],
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"a": 99999999999999999999}}</tool_call>',
        [Text(1, '<tool_call>{"name": "f", "arguments": {"a": 99999999999999999999}}</tool_call>')],
    ),
    ("a<tool_call>{", [Text(1, "a<tool_call>{")]),
    ('<tool_call>{"name": "add", "arguments": {"a": 1}}', [ADD]),
]


def test_its_marks_are_those_of_the_engine():
    """Whatever mlx-lm's own machine makes of an answer without calls amid thinking, this does."""
    from mlx_lm.generate import TextStateMachine, make_text_state_machine

    from mlxd.worker.markup import _transitions

    for shape in _tokenizers():
        theirs, mine = make_text_state_machine(shape), TextStateMachine(_transitions(shape, True))
        for state, (_, targets) in theirs._states.items():
            markers = _markers(theirs, state)
            assert markers <= _markers(mine, state), state
            assert {*targets} <= {*mine._states[state][1], "tool"}


def _markers(machine: Any, state: str) -> set[str]:
    found, waiting = set(), [machine._states[state][0]]
    while waiting:
        node = waiting.pop()
        found |= {node["__match__"][0]} if "__match__" in node else set()
        waiting += [child for key, child in node.items() if len(key) == 1]
    return {"".join(marker) for marker in found}


def _tokenizers() -> list[Any]:
    from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT

    plain = {
        "has_thinking": True, "think_start": "<think>", "think_end": "</think>",
        "has_tool_calling": True, "tool_call_start": "<tool_call>", "tool_call_end": "</tool_call>",
        "structural_markers": (), "response_transitions": {},
    }  # fmt: skip
    return [
        SimpleNamespace(**plain | more)
        for more in (
            {},
            {"has_thinking": False},
            {"tool_call_end": ""},
            {"structural_markers": ("<|open|>", "<|close|>")},
            {"response_transitions": RESPONSE_FORMAT["transitions"]},
        )
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(("text", "pieces"), CASES)
def test_markup_is_separated(markup, text, pieces, size):
    assert said(markup, text, size=size) == pieces


def test_a_prompt_that_opened_a_think_block_begins_in_it(markup):
    assert said(markup, "hm</think>so", reasoning=True) == [Reasoning(1, "hm"), Text(1, "so")]


def test_without_tools_a_tool_call_is_text(markup):
    assert said(markup, f"a{CALL}", tools=False) == [Text(1, f"a{CALL}")]


def test_a_call_that_a_length_limit_cut_is_text(markup):
    cut = '<tool_call>{"name": "add", "arguments": {"a": 1}}'
    assert said(markup, cut, truncated=True) == [Text(1, cut)]


def test_stop_strings_are_looked_for_in_the_answer_only(markup):
    call = CALL.replace("1", '"END"')
    text = f"<think>END</think>a{call}bENDc"
    expected = [Reasoning(1, "END"), Text(1, "a"), Call(1, "add", {"a": "END"}), Text(1, "b")]
    for size in (1, 3, 1000):
        assert said(markup, text, size=size, stop=("END",)) == expected


def test_white_space_beside_a_call_may_be_a_stop_string(markup):
    """It waits for words, and is no less looked at."""
    assert said(markup, f"{CALL}\n{CALL}", stop=("\n",)) == [ADD]
    assert said(markup, "\n \n\nso", stop=("\n\n",)) == [Text(1, "\n ")]


def test_scores_of_a_stop_string_behind_white_space_that_waits_are_not_told(markup):
    from mlxd.worker.answer import Answer
    from mlxd.worker.stops import StopStrings

    pieces, scorer = ["\n", "EN", "D"], cast("Scorer", Told())
    answer = Answer(1, Script(pieces), None, StopStrings(("END",)), scorer, calls=True)
    out: list[Piece] = []
    for token in range(len(pieces)):
        answer.take(token, (), out)
    answer.finish(out, truncated=False)
    assert out == [Text(1, "\n", [Logprob("0", b"", 0.0)])]


def test_a_stop_string_does_not_reach_across_a_call(markup):
    assert said(markup, f"E{CALL}ND", stop=("END",)) == [Text(1, "E"), ADD, Text(1, "ND")]


def test_a_model_without_markers_needs_no_separator(model_of: MakeModel):
    from mlx_lm.tokenizer_utils import load

    from mlxd.worker.markup import Markup

    markup = Markup(load(model_of(Shape())))
    assert markup.separator((TOOL,), reasoning=False) is None
    assert (markup.thinking, markup.tools) == (False, False)


def test_whatever_a_parser_raises_or_returns_the_text_is_kept():
    from mlxd.worker.markup import _Calls

    class Tokenizer:
        tool_call_start = "<"
        tool_call_end = ">"

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def tool_parser(self, text: str, tools: Any) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    good = {"name": "f", "arguments": {}}
    wrong: tuple[Any, ...] = (
        AttributeError("x"),
        KeyError("x"),
        None,
        1,
        [good, None],
        [],
        "f",
        {},
    )
    for answer in wrong:
        assert _Calls(Tokenizer(answer), ()).closed("m") == [("text", "<m>")]
    assert _Calls(Tokenizer([good, good]), ()).closed("m") == [CalledTool("f", {})] * 2
