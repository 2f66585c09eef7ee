"""Conversations of agents, in the words of templates that take them in one way only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from mlxd.core.request import CalledTool, GenerationRequest, Message
from mlxd.worker.formats import complete
from mlxd.worker.prompt import Prompter
from mlxd.worker.room import Room
from tests.support.model_maker import Shape, _write_tokenizer

pytestmark = pytest.mark.mlx

SYSTEM, ASKED = Message("system", "Be brief."), Message("user", "Look.")
LATE = Message("system", "Now!")
ONE = CalledTool("read", {"path": "é.py"}, "call_0123456789")
TWO = CalledTool("list", {}, "toolu_0123456789")
FIRST = Message("tool", "1st", tool_name="read", tool_call_id=ONE.id)
SECOND = Message("tool", "2nd", tool_name="list", tool_call_id=TWO.id)


def called(*calls: CalledTool, words: str = "", thought: str = "") -> Message:
    return Message("assistant", words, thinking=thought, tool_calls=calls)


TURNS = (
    "{% for m in messages %}<{{ m.role }} {{ m.tool_call_id }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.id }} {{ c.function.name }} "
    "{{ c.function.arguments | tojson }}]{% endfor %}{% endfor %}"
)
# As Mistral has it.
SHORT_IDS = (
    "{% for m in messages %}{% if m.role == 'tool' and (m.tool_call_id is undefined or "
    "m.tool_call_id | length != 9) %}{{ raise_exception('nine') }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}"
    "{% endif %}{% endfor %}{% endfor %}"
) + TURNS
ALTERNATING = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}"
) + SHORT_IDS
# As DeepSeek's have it: the second is never so, since transformers leaves out what is none.
TEXT_ARGUMENTS = TURNS.replace("c.function.arguments | tojson", "'' + c.function.arguments")
CALLS_ALONE = TURNS.replace("m.tool_calls or []", "(m.tool_calls if m.content is none else [])")
# As Llama has it.
ONE_CALL = (
    "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length != 1 %}"
    "{{ raise_exception('single') }}{% endif %}{% endfor %}"
) + TURNS
# As Gemma has it.
NO_TOOLS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
KNOWS_NO_CALLS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FIRST_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}<{{ m.role }}>{{ m.content }}"
    "{% endif %}{% endfor %}"
)
LAST_SYSTEM = (
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.s = m.content %}{% endif %}{% endfor %}<system>{{ ns.s }}{% for m in messages %}"
    "{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)


def prompter(folder: Path, template: str, *markers: str) -> tuple[Any, Any]:
    _write_tokenizer(folder, Shape(markers=markers, template=template))
    tokenizer = mlx_lm.utils.load_tokenizer(folder, {})
    complete(tokenizer)
    return Prompter(tokenizer), tokenizer


def text(made: tuple[Any, Any], *messages: Message, **fields: Any) -> str:
    request = GenerationRequest(model="m", messages=messages, **fields)
    return str(made[0].render(request, Room(4096, 4096)).text)


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (
            TEXT_ARGUMENTS,
            (ASKED, called(ONE), FIRST),
            '<user >Look.<assistant >[call_0123456789 read {"path": "é.py"}]'
            "<tool call_0123456789>1st",
        ),
        (
            CALLS_ALONE,
            (ASKED, called(TWO), SECOND),
            '<user >Look.<assistant >[{"name": "list", "arguments": {}}]<tool toolu_0123456789>2nd',
        ),
        (
            ONE_CALL,
            (ASKED, called(ONE, TWO, words="Hm."), SECOND, FIRST, ASKED),
            '<user >Look.<assistant >Hm.[call_0123456789 read {"path": "é.py"}]'
            "<tool call_0123456789>1st<assistant >[toolu_0123456789 list {}]"
            "<tool toolu_0123456789>2nd<user >Look.",
        ),
        (
            NO_TOOLS,
            (ASKED, called(ONE, words="Hm."), FIRST, ASKED),
            '<user>Look.<assistant>Hm.\n[{"name": "read", "arguments": {"path": "é.py"}}]'
            "<user>1st\nLook.",
        ),
        (
            KNOWS_NO_CALLS,
            (ASKED, called(TWO), SECOND),
            '<user>Look.<assistant>[{"name": "list", "arguments": {}}]<tool>2nd',
        ),
        (
            FIRST_SYSTEM,
            (SYSTEM, ASKED, LATE, Message("assistant", "So."), ASKED),
            "<system>Be brief.<user>Look.\nNow!<assistant>So.<user>Look.",
        ),
        (
            LAST_SYSTEM,
            (SYSTEM, ASKED, LATE),
            "<system>Be brief.<user>Look.\nNow!",
        ),
    ],
    ids=[
        "arguments as text", "calls alone", "one call", "no tools", "no calls", "first system",
        "last system",
    ],
)  # fmt: skip
def test_what_a_template_does_not_take_is_said_as_it_does(
    tmp_path: Path, template: str, turns: tuple[Message, ...], expected: str
) -> None:
    assert text(prompter(tmp_path, template), *turns) == expected


def test_calls_that_a_template_hides_stand_between_their_models_marks(tmp_path: Path) -> None:
    """As Granite 3 has it, which writes its next one as it sees the last."""
    made = prompter(tmp_path, KNOWS_NO_CALLS + "{# tools <|tool_call|> #}")
    assert text(made, ASKED, called(TWO, words="Hm."), SECOND) == (
        '<user>Look.<assistant>Hm.\n<|tool_call|>[{"name": "list", "arguments": {}}]<tool>2nd'
    )


def test_a_call_that_is_said_in_words_leaves_earlier_turns_as_they_were(tmp_path: Path) -> None:
    """What was read of them is read no second time."""
    made = prompter(tmp_path, KNOWS_NO_CALLS)
    turns = (SYSTEM, ASKED, ASKED, LATE)
    assert text(made, *turns, called(TWO), SECOND).startswith(text(made, *turns))


def test_calls_that_a_template_hides_are_said_in_python_where_its_model_writes_that(
    tmp_path: Path,
) -> None:
    """As LFM 2 does, whose template says nothing of its calls."""
    marks = ("<|tool_call_start|>", "<|tool_call_end|>")
    made = prompter(tmp_path, KNOWS_NO_CALLS + "{# tools <|tool_call_start|> #}", *marks)
    call = CalledTool("read", {"path": "é.py", "all": True, "of": {"a": [None]}})
    said = text(made, ASKED, called(call, TWO), SECOND)
    inner = "[read(path='é.py', all=True, of={'a': [None]}), list()]"
    assert said == f"<user>Look.<assistant>{marks[0]}{inner}{marks[1]}<tool>2nd"
    read = [CalledTool(**each) for each in made[1].tool_parser(inner)]
    assert read == [call, CalledTool("list", {})]


def test_a_template_for_requests_with_tools_says_calls_itself(tmp_path: Path) -> None:
    """As Hermes has it, whose usual one leaves them out."""
    named: Any = [
        {"name": "default", "template": KNOWS_NO_CALLS},
        {"name": "tool_use", "template": TURNS},
    ]
    made = prompter(tmp_path, named)
    turns = (ASKED, called(TWO), SECOND)
    tool: Any = {"type": "function", "function": {"name": "list", "parameters": {}}}
    assert "<assistant >[toolu_0123456789 list {}]" in text(made, *turns, tools=(tool,))
    assert '<assistant>[{"name": "list", "arguments": {}}]' in text(made, *turns)


def test_ids_are_shortened_alike_in_a_call_and_its_result(tmp_path: Path) -> None:
    """And the same in the next turn: what was read of it is read no second time."""
    made = prompter(tmp_path, SHORT_IDS)
    turns = (ASKED, called(ONE, TWO), SECOND, FIRST)
    said = text(made, *turns)
    one, two = (said.partition(name)[0][-9:] for name in (" read", " list"))
    assert one != two
    assert f"<tool {two}>2nd<tool {one}>1st" in said
    assert text(made, *turns, Message("assistant", "So."), ASKED).startswith(said)


def test_calls_without_ids_find_their_results_in_order(tmp_path: Path) -> None:
    made = prompter(tmp_path, SHORT_IDS)
    calls = (CalledTool("read", {}), CalledTool("list", {}))
    said = text(made, ASKED, called(*calls), Message("tool", "1st"), Message("tool", "2nd"))
    one, two = (said.partition(name)[0][-9:] for name in (" read", " list"))
    assert f"<tool {one}>1st<tool {two}>2nd" in said


def test_what_is_said_behind_a_result_goes_with_it_where_roles_alternate(tmp_path: Path) -> None:
    made = prompter(tmp_path, ALTERNATING)
    said = text(made, SYSTEM, ASKED, called(ONE), FIRST, ASKED, LATE)
    assert said.endswith(">1st\n\nLook.\nNow!")


def test_a_template_that_takes_all_of_it_is_given_it_as_it_is(tmp_path: Path) -> None:
    said = text(prompter(tmp_path, TURNS), SYSTEM, ASKED, called(ONE, TWO), FIRST, SECOND, LATE)
    assert said == (
        '<system >Be brief.<user >Look.<assistant >[call_0123456789 read {"path": "é.py"}]'
        "[toolu_0123456789 list {}]<tool call_0123456789>1st<tool toolu_0123456789>2nd<system >Now!"
    )


def test_kimis_calls_are_numbered_as_it_numbers_them(tmp_path: Path) -> None:
    marks = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    made = prompter(tmp_path, TURNS + f"{{# {marks[0]} #}}", *marks)
    said = text(made, ASKED, called(ONE, TWO), SECOND, FIRST, called(ONE), FIRST)
    ids = ("functions.read:0", "functions.list:1", "functions.read:2")
    assert [said.count(id) for id in ids] == [2, 2, 2]
    assert f"<tool {ids[1]}>2nd<tool {ids[0]}>1st" in said


SWITCHES = (
    "{{ enable_thinking }} {{ thinking }} {{ reasoning }} {{ thinking_budget }} "
    "{{ reasoning_effort }}"
)


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (None, "True True True  "),
        (True, "True True True  "),
        (False, "False False False 0 "),
        ("high", "True True True  high"),
    ],
)
def test_thinking_is_switched_by_whatever_name_a_template_has(
    tmp_path: Path, think: Any, expected: str
) -> None:
    made = prompter(tmp_path, SWITCHES, "<think>", "</think>")
    assert text(made, ASKED, think=think) == expected


@pytest.mark.parametrize(("think", "shown"), [(None, False), (True, True), (False, False)])
def test_a_model_whose_template_asks_it_to_think_does_so_where_that_is_wanted(
    tmp_path: Path, think: Any, shown: bool
) -> None:
    """As Granite 3 has it."""
    asks = "{% if thinking %}Think in <think></think>, then <response></response>.{% endif %}"
    assert ("<response>" in text(prompter(tmp_path, asks + TURNS), ASKED, think=think)) is shown


def test_a_switch_that_the_client_sets_itself_stays_set(tmp_path: Path) -> None:
    made = prompter(tmp_path, SWITCHES, "<think>", "</think>")
    assert text(made, ASKED, template_options={"thinking": False}) == "True False True  "
    given = {"enable_thinking": False, "thinking_budget": 5}
    assert text(made, ASKED, template_options=given) == "False False False 5 "


# As Nemotron Nano 2 has it: a word of the system's is its only switch, and is not shown.
WORD = (
    "{% set ns = namespace(on=true) %}{% for m in messages %}{% if '/no_think' in m.content %}"
    "{% set ns.on = false %}{% endif %}<{{ m.role }}>{{ m.content | replace('/no_think', '') | trim"
    " }}{% endfor %}<think>{{ '' if ns.on else '</think>' }}"
)


@pytest.mark.parametrize(
    ("template", "turns", "think", "expected"),
    [
        (WORD, (SYSTEM, ASKED), False, "<system>Be brief.<user>Look.<think></think>"),
        (WORD, (SYSTEM, ASKED), None, "<system>Be brief.<user>Look.<think>"),
        (WORD, (ASKED,), False, "<system><user>Look.<think></think>"),
        (WORD.replace("ns.on else", "enable_thinking else"), (ASKED,), False,
         "<user>Look.<think></think>"),
        (KNOWS_NO_CALLS, (SYSTEM, ASKED), False, "<system>Be brief.<user>Look."),
    ],
)  # fmt: skip
def test_thinking_is_switched_by_a_word_where_that_is_the_switch(
    tmp_path: Path, template: str, turns: tuple[Message, ...], think: Any, expected: str
) -> None:
    made = prompter(tmp_path, template, "<think>", "</think>")
    assert text(made, *turns, think=think) == expected


# As Hunyuan and Mistral have it.
EFFORTS = (
    "{% if reasoning_effort is defined and reasoning_effort not in ['none', 'high'] %}"
    "{{ raise_exception('reasoning_effort must be none or high') }}{% endif %}"
    "{{ reasoning_effort }}"
)


@pytest.mark.parametrize(
    ("think", "expected"),
    [("low", "none"), ("medium", "high"), ("high", "high"), ("max", "high"), (None, "")],
)
def test_an_effort_that_a_template_refuses_is_the_nearest_that_it_takes(
    tmp_path: Path, think: Any, expected: str
) -> None:
    assert text(prompter(tmp_path, EFFORTS), ASKED, think=think) == expected


@pytest.mark.parametrize("more", [{}, {"description": None}])
def test_a_tool_that_describes_nothing_is_told_where_a_template_reads_that(
    tmp_path: Path, more: Any
) -> None:
    """As gpt-oss's does."""
    told = "t.function.name + ' ' + t.function.description"
    template = f"{{% for t in tools %}}{{{{ {told} }}}}{{% endfor %}}"
    tools = ({"type": "function", "function": {"name": "read"} | more},)
    assert text(prompter(tmp_path, template), ASKED, tools=tools) == "read "
