"""What an answer is taken apart into."""

from __future__ import annotations

import json
from typing import Any, Literal

from mlxd.core.request import CalledTool, Json
from mlxd.ipc.messages import Call, Output, Unsendable, encode

Part = tuple[Literal["text", "reasoning"], str] | CalledTool
_MOST_LEVELS = 128
"""Objects and arrays in each other. Thousands would end whoever walks through them, here or behind
the socket; a client that sends a call back may nest no more than `server.http.json.max_depth`.
"""


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
    return _sendable(name, arguments)


def _sendable(name: str, arguments: Json) -> CalledTool | None:
    """JSON can hold what a message cannot: integers without end, halves of surrogate pairs; and
    Python what JSON cannot: numbers that are infinite, keys that are no text.
    """
    if _is_deep(arguments):
        return None
    try:
        arguments = json.loads(json.dumps(arguments, allow_nan=False))
        encode(Output(0, [Call(0, name, arguments)]))
    except (Unsendable, TypeError, ValueError):
        return None
    return CalledTool(name, arguments)


def _is_deep(arguments: Json) -> bool:
    level: list[Any] = [arguments]
    for _ in range(_MOST_LEVELS):
        values = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
        level = [value for value in values if isinstance(value, dict | list | tuple)]
        if not level:
            return False
    return True


def overlap(text: str, mark: str) -> int:
    """How many of the last characters may be the start of `mark`."""
    most = min(len(text), len(mark) - 1)
    return next((n for n in range(most, 0, -1) if mark.startswith(text[-n:])), 0)
