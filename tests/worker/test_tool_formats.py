"""Calls as models write them, in every format that mlx-lm reads, cut into any pieces."""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.core.request import CalledTool

pytestmark = pytest.mark.mlx

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
CALLED = CalledTool("get_weather", {"city": "Orléans <2>", "days": 3})
_GLM = (
    "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Orléans <2></arg_value>"
    "<arg_key>days</arg_key><arg_value>3</arg_value></tool_call>"
)
FORMATS = {
    "json_tools": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Orléans <2>", '
    '"days": 3}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOrléans <2>\n"
    "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    "glm47": _GLM,
    "laguna": _GLM,
    "longcat": "<longcat_tool_call>get_weather\n<longcat_arg_key>city</longcat_arg_key>\n"
    "<longcat_arg_value>Orléans <2></longcat_arg_value>\n<longcat_arg_key>days</longcat_arg_key>\n"
    "<longcat_arg_value>3</longcat_arg_value>\n</longcat_tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">'
    'Orléans <2></parameter>\n<parameter name="days">3</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "minicpm5": '<function name="get_weather"><param name="city"><![CDATA[Orléans <2>]]></param>'
    '<param name="days">3</param></function>',
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Orléans <2>", "days": 3}',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
    '<|tool_call_argument_begin|>{"city": "Orléans <2>", "days": 3}<|tool_call_end|>'
    "<|tool_calls_section_end|>",
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>'
    'argument key="city" type="string"<|sep|>Orléans <2><|close|>argument<|sep|><|open|>argument '
    'key="days" type="integer"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
    "<|close|>tools<|sep|>",
    "function_gemma": "<start_function_call>call:get_weather{city:<escape>Orléans <2><escape>,"
    "days:3}<end_function_call>",
    "gemma4": '<|tool_call>call:get_weather{city:<|"|>Orléans <2><|"|>,days:3}<tool_call|>',
    "pythonic": '<|tool_call_start|>[get_weather(city="Orléans <2>", days=3)]<|tool_call_end|>',
    "muse_spark": '<atem:function_calls>\n<atem:invoke name="get_weather">\n<atem:parameter '
    'name="city">Orléans <2></atem:parameter>\n<atem:parameter name="days">3</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls>",
}
THOUGHT = "<think>a < b, so </thin</think>"


def markup_of(format: str) -> Any:
    from mlxd.worker.markup import Markup

    module = importlib.import_module(f"mlx_lm.tool_parsers.{format}")
    tokenizer = SimpleNamespace(
        has_thinking=True,
        think_start="<think>",
        think_end="</think>",
        has_tool_calling=True,
        tool_call_start=module.tool_call_start,
        tool_call_end=module.tool_call_end,
        tool_parser=module.parse_tool_call,
        structural_markers=(),
        response_transitions={},
        response_initial_state=None,
    )
    return Markup(tokenizer)


def parts_of(
    markup: Any, pieces: list[str], *, truncated: bool = False, tools: Any = (TOOL,)
) -> tuple[list[Any], int]:
    """Text and reasoning that follow each other as one; and how many calls were none."""
    separator = markup.separator(tools, reasoning=False)
    parts: list[Any] = []
    for piece in pieces:
        parts += separator.feed(piece)
    parts += separator.finish(truncated=truncated)
    joined: list[Any] = []
    for part in parts:
        kind = part[0] if isinstance(part, tuple) else None
        if joined and kind and isinstance(joined[-1], tuple) and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + part[1])
        else:
            joined.append(part)
    return joined, separator.malformed


def cut(text: str, chance: random.Random) -> list[str]:
    """At random places; some pieces are single characters."""
    places = sorted(chance.sample(range(1, len(text)), chance.randint(0, len(text) // 2)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def test_every_format_is_tried():
    from mlx_lm import tool_parsers

    assert {module.name for module in pkgutil.iter_modules(tool_parsers.__path__)} == {*FORMATS}


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_is_the_same_however_it_is_cut(format):
    markup, chance = markup_of(format), random.Random(format)
    text = f"{THOUGHT}I look. {FORMATS[format]}"
    expected = [("reasoning", "a < b, so </thin"), ("text", "I look. "), CALLED]
    for pieces in [[text], list(text), *(cut(text, chance) for _ in range(25))]:
        assert parts_of(markup, pieces) == (expected, 0)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_call_is_said_as_it_stands_and_counted(format):
    """Garbled: the end is missing half way through the call."""
    markup, chance = markup_of(format), random.Random(format)
    start, end = markup._tokenizer.tool_call_start, markup._tokenizer.tool_call_end
    text = f"I look. {start}\x00{{[(<{end} Hm."
    parts, malformed = parts_of(markup, [text])
    for pieces in [list(text), *(cut(text, chance) for _ in range(25))]:
        assert parts_of(markup, pieces) == (parts, malformed)
    assert (parts, malformed) == ([("text", text)], 1)


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_cut_by_a_length_limit_is_said_as_it_stands(format):
    markup = markup_of(format)
    text = FORMATS[format]
    for length in range(len(markup._tokenizer.tool_call_start), len(text) - 1, 7):
        parts, malformed = parts_of(markup, list(text[:length]), truncated=True)
        if any(isinstance(part, CalledTool) for part in parts):
            assert not markup._tokenizer.tool_call_end
        else:
            assert parts == [("text", text[:length])]
        assert malformed == 0


@pytest.mark.parametrize(
    ("format", "said"), [("gemma4", "call:f{a:"), ("kimi_k3", "<|open|>call tool")]
)
def test_what_a_parser_takes_too_long_for_is_said_as_it_stands(format, said):
    """A model that repeats itself: everybody's next token waits for the parser."""
    from mlxd.worker.markup import PARSE_SECONDS

    markup = markup_of(format)
    start, end = markup._tokenizer.tool_call_start, markup._tokenizer.tool_call_end
    text = start + said * (40_000 // len(said)) + end
    began = time.process_time()
    assert parts_of(markup, [text, " Hm."]) == ([("text", f"{text} Hm.")], 1)
    assert time.process_time() - began < 10 * PARSE_SECONDS


@pytest.mark.parametrize("levels", [150, 9999])
def test_a_call_that_nests_without_end_is_said_as_it_stands(levels):
    """Arguments may be JSON in a string, which no parser has looked into."""
    arguments = json.dumps('{"a": ' * levels + "1" + "}" * levels)
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    assert parts_of(markup_of("json_tools"), [text]) == ([("text", text)], 1)


def test_keys_that_are_no_text_become_what_json_has_in_their_place():
    """Whoever reads them behind the socket knows no others."""
    markup = markup_of("pythonic")
    start, end = markup._tokenizer.tool_call_start, markup._tokenizer.tool_call_end
    parts, _ = parts_of(markup, [f"{start}[f(a={{None: 1, True: (2, 3), 4: 5}})]{end}"])
    assert parts == [CalledTool("f", {"a": {"null": 1, "true": [2, 3], "4": 5}})]


_REF = {"type": "object", "properties": {"a": {"type": "array"}}}
EDIT = {
    "type": "function",
    "function": {
        "name": "edit",
        "parameters": {
            "type": "object",
            "$defs": {"ref": _REF},
            "properties": {
                "text": {"type": "string"},
                "word": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "gone": {"type": ["string", "null"]},
                "kind": {"enum": ["1", "2"]},
                "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                "all": {"type": ["boolean", "null"]},
                "more": {"$ref": "#/$defs/ref"},
            },
        },
    },
}
WRITTEN = {
    "text": '    if a:\n\n        return "é </function>" \n',
    "word": '{"a": 1}',
    "gone": "null",
    "kind": "1",
    "count": "3",
    "all": "True",
    "more": '{"a": [1, "x"]}',
}
MEANT = WRITTEN | {"gone": None, "count": 3, "all": True, "more": {"a": [1, "x"]}}


def _keys(prefix: str) -> str:
    return "edit\n" + "\n".join(
        f"<{prefix}arg_key>{key}</{prefix}arg_key>\n<{prefix}arg_value>{value}</{prefix}arg_value>"
        for key, value in WRITTEN.items()
    )


def _tags(head: str, parameter: str, end: str) -> str:
    each = (parameter.format(key, value) for key, value in WRITTEN.items())
    return f"\n{head}\n" + "\n".join(each) + f"\n{end}\n"


EDITS = {
    "glm47": _keys(""),
    "longcat": _keys("longcat_"),
    "qwen3_coder": _tags("<function=edit>", "<parameter={}>\n{}\n</parameter>", "</function>"),
    "minimax_m2": _tags('<invoke name="edit">', '<parameter name="{}">{}</parameter>', "</invoke>"),
    "muse_spark": _tags(
        '<atem:invoke name="edit">',
        '<atem:parameter name="{}">{}</atem:parameter>',
        "</atem:invoke>",
    ),
}


@pytest.mark.parametrize("format", EDITS)
def test_arguments_are_what_their_schema_says_and_strings_what_stands_there(format):
    """An edit whose text lost its indentation is none that its tool could find."""
    markup = markup_of(format)
    start, end = markup._tokenizer.tool_call_start, markup._tokenizer.tool_call_end
    parts, malformed = parts_of(markup, [f"{start}{EDITS[format]}{end}"], tools=(EDIT,))
    assert parts == [CalledTool("edit", MEANT)]
    assert malformed == 0


@pytest.mark.parametrize("said", ["` around a call, as in `", "", "think of it"])
def test_words_between_marks_call_no_tool_that_nobody_offers(said):
    """GLM's parser takes anything for a call."""
    text = f"Write `<tool_call>{said}</tool_call>`."
    assert parts_of(markup_of("glm47"), list(text)) == ([("text", text)], 1)


def test_a_call_without_arguments_is_one():
    text = "<tool_call>get_weather</tool_call><tool_call>get_weather\n</tool_call>"
    call = CalledTool("get_weather", {})
    assert parts_of(markup_of("glm47"), [text]) == ([call, call], 0)


def test_a_calls_id_is_no_name():
    """As Mistral Small 3.2 writes it."""
    text = '[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Ulm"}'
    text += '[TOOL_CALLS]get_weather[CALL_ID]f6g7h8i9j[ARGS]{"days": 3}'
    calls = [CalledTool("get_weather", {"city": "Ulm"}), CalledTool("get_weather", {"days": 3})]
    assert parts_of(markup_of("mistral"), list(text)) == (calls, 0)


@pytest.mark.parametrize(
    "said",
    [
        '{"name": "get_weather", "arguments": {"city": "a\nb", "days": 3}}',
        '{"name": "get_weather", "parameters": {"city": "a\\nb", "days": 3}}',
        '[{"name": "get_weather", "arguments": {"city": "a\\nb", "days": 3}}]',
        '{"function": {"name": "get_weather", "arguments": {"city": "a\\nb", "days": 3}}}',
    ],
)
def test_json_that_is_nearly_a_call_is_one(said):
    """As small models write it."""
    parts, malformed = parts_of(markup_of("json_tools"), [f"<tool_call>\n{said}\n</tool_call>"])
    assert (parts, malformed) == ([CalledTool("get_weather", {"city": "a\nb", "days": 3})], 0)


def test_two_calls_between_the_same_marks_are_two():
    one, two = (json.dumps({"name": name, "arguments": {}}) for name in ("a", "b"))
    parts, _ = parts_of(markup_of("json_tools"), [f"<tool_call>{one}\n{two}</tool_call>"])
    assert parts == [CalledTool("a", {}), CalledTool("b", {})]
