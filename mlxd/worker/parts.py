"""What an answer is taken apart into."""

from __future__ import annotations

import json
from typing import Any, Literal

from mlxd.core.request import CalledTool, Json
from mlxd.ipc.messages import Call, Output, Unsendable, encode

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
        except ValueError:
            return None
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return CalledTool(name, arguments) if _sendable(name, arguments) else None


def _sendable(name: str, arguments: Json) -> bool:
    """JSON can hold what a message cannot: integers without end, halves of surrogate pairs; and
    Python what JSON cannot: numbers that are infinite.
    """
    try:
        encode(Output(0, [Call(0, name, arguments)]))
        json.dumps(arguments, allow_nan=False)
    except (Unsendable, TypeError, ValueError):
        return False
    return True
