"""A body of many times the items takes as many times as long to read, and not the square of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from mlxd.dialects.openai import ChatCodec, ResponsesCodec

Json = dict[str, Any]
FEW, TIMES = 500, 16


def calls(count: int) -> Json:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    return {"model": "m", "input": [call] * 2 * count}


def words(count: int) -> Json:
    said = {"role": "assistant", "content": "word " * 20}
    return {"model": "m", "input": [said] * count}


def thoughts(count: int) -> Json:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm " * 100}]}
    return {"model": "m", "input": [thought] * count}


def allowed(count: int) -> Json:
    tools = [{"type": "function", "name": f"f{number}"} for number in range(count)]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": tools}
    return {"model": "m", "input": "hi", "tools": tools, "tool_choice": choice}


def allowed_in_chat(count: int) -> Json:
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(count)]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}
    said = [{"role": "user", "content": "hi"}]
    return {"model": "m", "messages": said, "tools": tools, "tool_choice": choice}


def seconds(codec: Any, body: Json) -> float:
    spent = []
    for _ in range(3):
        began = time.process_time()
        codec.parse(body, id="abc", now=0.0)
        spent.append(time.process_time() - began)
    return min(spent)


@pytest.mark.parametrize("made", [calls, words, thoughts, allowed])
def test_responses(made: Callable[[int], Json]) -> None:
    few, many = made(FEW), made(FEW * TIMES)
    assert seconds(ResponsesCodec(), many) < 3 * TIMES * seconds(ResponsesCodec(), few)


def test_chat() -> None:
    few, many = allowed_in_chat(FEW), allowed_in_chat(FEW * TIMES)
    assert seconds(ChatCodec(), many) < 3 * TIMES * seconds(ChatCodec(), few)
