"""Answers that a grammar holds, however they are cut into pieces."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from mlxd.core.request import CalledTool
from mlxd.dialects.base import to_json
from mlxd.worker.held import Calls, Held, Words, WordsOrCalls
from mlxd.worker.parts import call_of


def read(held: Held, text: str, size: int, *, truncated: bool = False) -> list[Any]:
    parts: list[Any] = []
    for at in range(0, len(text), size):
        parts += held.feed(text[at : at + size])
    parts += held.finish(truncated=truncated)
    joined: list[Any] = []
    for part in parts:
        kind = part[0] if isinstance(part, tuple) else None
        if joined and kind and isinstance(joined[-1], tuple) and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + part[1])
        else:
            joined.append(part)
    return joined


def held(calls: bool = False, inside: bool = False, opens: str = "<think>") -> Held:
    return Held(Calls() if calls else Words(), inside=inside, opens=opens, closes="</think>")


CALL = '{"name": "f", "arguments": {"a": "}</tool_call><think>\\"{"}}'
CALLED = CalledTool("f", {"a": '}</tool_call><think>"{'})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_text_and_thinking(size):
    said = '{"a": "<think>x</think><tool_call>"}'
    assert read(held(), said, size) == [("text", said)]
    assert read(held(), f"<think>hm</thin k</think>{said}", size) == [
        ("reasoning", "hm</thin k"),
        ("text", said),
    ]
    assert read(held(inside=True), f"hm</think>{said}", size)[0] == ("reasoning", "hm")
    assert read(held(inside=True), "hm</thi", size) == [("reasoning", "hm</thi")]
    assert read(held(), "<thin", size) == [("text", "<thin")]
    assert read(held(opens=""), "<think>", size) == [("text", "<think>")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "said",
    [f"[{CALL}, {CALL}]", f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>"],
)
def test_calls_and_what_stands_between_them(size, said):
    assert read(held(calls=True), said, size) == [CALLED, CALLED]
    assert read(held(calls=True), f"<think>{{</think>{said}", size) == [
        ("reasoning", "{"),
        CALLED,
        CALLED,
    ]


def test_a_call_is_there_as_soon_as_it_is_whole():
    calls = Calls()
    assert calls.feed(f"[{CALL}") == [CALLED]
    assert not calls.holding
    assert calls.feed(", {") == []
    assert calls.holding


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_call_that_was_cut_is_text_and_not_malformed(size):
    reader = held(calls=True)
    assert read(reader, f"[{CALL}, {CALL[:20]}", size, truncated=True) == [
        CALLED,
        ("text", CALL[:20]),
    ]
    assert reader.malformed == 0


def test_numbers_are_the_nearest_that_a_message_holds():
    said = '{"name": "f", "arguments": {"a": 1e999, "b": -123456789012345678901, "c": 12}}'
    reader = held(calls=True)
    most = sys.float_info.max
    assert read(reader, said, 3) == [
        CalledTool("f", {"a": most, "b": -123456789012345678901.0, "c": 12})
    ]
    assert reader.malformed == 0


@pytest.mark.parametrize("value", ['"\\ud800"', "[" * 900 + "]" * 900, "[" * 9999 + "]" * 9999])
def test_a_call_that_no_message_holds_is_text_and_counted(value):
    reader = held(calls=True)
    said = f'{{"name": "f", "arguments": {{"a": {value}}}}}'
    assert read(reader, said, 3) == [("text", said)]
    assert reader.malformed == 1


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_text_or_what_begins_with_a_marker(size):
    def reader() -> Held:
        either = WordsOrCalls("<call>", Calls())
        return Held(either, inside=False, opens="<think>", closes="</think>")

    assert read(reader(), '{"a": "<call>"}', size) == [("text", '{"a": "<call>"}')]
    assert read(reader(), f"<think>x</think><call>{CALL}", size) == [("reasoning", "x"), CALLED]
    assert read(reader(), "<cal", size) == [("text", "<cal")]


def test_thinking_is_told():
    reader = held()
    told = []
    for text in ("<think>", "a", "</think>", "{"):
        reader.feed(text)
        told.append(reader.thinking)
    assert told == [True, True, False, False]


@pytest.mark.parametrize("levels", [127, 128, 900, *range(980, 992), 5000])
def test_a_call_that_is_deeper_than_can_be_passed_on_is_text(levels):
    """It must not end the worker, nor the daemon's trust in it."""
    reader = held(calls=True)
    inside = "[" * levels + "]" * levels
    said = f'{{"name": "f", "arguments": {{"a": {inside}}}}}'
    (part,) = read(reader, said, 1000)
    assert (part == ("text", said)) == (reader.malformed == 1) == (levels >= 128)
    words = {"name": "f", "arguments": f'{{"a": {inside}}}'}
    assert (call_of(words) is None) == (levels >= 128)


def test_keys_are_text_whatever_a_parser_makes_of_them():
    """Some read Python's literals; the daemon could not write these as JSON."""
    arguments = {"a": {None: 1, True: {2: (3, 4)}}, "b": [1.5, "x", None]}
    call = call_of({"name": "f", "arguments": arguments})
    assert call is not None
    assert call.arguments == {"a": {"null": 1, "true": {"2": [3, 4]}}, "b": [1.5, "x", None]}
    assert to_json(call.arguments) == json.dumps(call.arguments, separators=(",", ":")).encode()
