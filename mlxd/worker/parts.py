"""What an answer is taken apart into."""

from __future__ import annotations

import json
from typing import Any, Literal

from mlxd.core.request import CalledTool, Json
from mlxd.ipc.messages import Call, Output, Unsendable, encode

MOST_LEVELS = 200
"""Of a call's arguments. Whoever passes them on goes into each level from the one around it, which
Python allows about a thousand times in all.
"""
Part = tuple[Literal["text", "reasoning"], str] | CalledTool


def call_of(parsed: Any) -> CalledTool | None:
    """What a parser gave, as a call that can be sent; None: it is none."""
    if not isinstance(parsed, dict):
        return None
    name = parsed.get("name")
    arguments = parsed.get("arguments", {} if parsed.keys() <= {"name", "id"} else None)
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    plain = _sendable(name, arguments)
    return CalledTool(name, plain) if plain is not None else None


def _sendable(name: str, arguments: Json) -> Json | None:
    """As JSON has it: parsers that read Python's literals give keys that are no text. None: it
    cannot be sent.

    JSON can hold what a message cannot: integers without end, halves of surrogate pairs, levels
    without end; and Python what JSON cannot: numbers that are infinite.
    """
    if _is_deep(arguments):
        return None
    try:
        plain: Json = json.loads(json.dumps(arguments, allow_nan=False))
        encode(Output(0, [Call(0, name, plain)]))
    except (Unsendable, TypeError, ValueError):
        return None
    return plain


def _is_deep(arguments: Json) -> bool:
    """Level by level, so that none is too deep for it."""
    level: list[Any] = [arguments]
    for _ in range(MOST_LEVELS):
        inside = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for each in inside for one in each if isinstance(one, dict | list)]
        if not level:
            return False
    return True
