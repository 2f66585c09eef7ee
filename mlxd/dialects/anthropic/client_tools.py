"""Tools that Anthropic's models know by their type alone, and the client runs: as functions.

The arguments are those of Anthropic's documentation and SDKs; a model that was not trained on them
is told what they are.
"""

from __future__ import annotations

import re

from mlxd.dialects.fields import Json

KNOWN = r"(bash|text_editor|memory)_\d{8}"
"""Their types."""
_TEXT: Json = {"type": "string"}
_LINES: Json = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


def function_of(kind: str, name: str) -> Json | None:
    """For templates; None: no such tool. `kind` is a type with its date, such as bash_20250124."""
    found = re.fullmatch(KNOWN, kind)
    if found is None:
        return None
    description, properties, required = _TOOLS[found[1]]
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": parameters}


def _commands(*names: str) -> Json:
    return {"type": "string", "enum": list(names)}


_EDITS: Json = {
    "path": _TEXT,
    "view_range": _LINES | {"description": "view: the first and the last line"},
    "file_text": _TEXT | {"description": "create: all that is to be in the file"},
    "old_str": _TEXT | {"description": "str_replace: what stands there once, exactly"},
    "new_str": _TEXT | {"description": "str_replace: what is to stand there"},
    "insert_line": {"type": "integer", "description": "insert: behind this line; 0: at the top"},
    "insert_text": _TEXT | {"description": "insert: the new lines"},
}
_TOOLS: dict[str, tuple[str, Json, list[str]]] = {
    "bash": (
        "Run a command in a shell that stays open from one call to the next.",
        {"command": _TEXT, "restart": {"type": "boolean", "description": "begin a new shell"}},
        [],
    ),
    "text_editor": (
        "View, create and edit text files.",
        {"command": _commands("view", "create", "str_replace", "insert")} | _EDITS,
        ["command", "path"],
    ),
    "memory": (
        "Keep notes over conversations, in files below /memories.",
        {
            "command": _commands("view", "create", "str_replace", "insert", "delete", "rename"),
            **_EDITS,
            "old_path": _TEXT | {"description": "rename: the present path"},
            "new_path": _TEXT | {"description": "rename: the one that is wanted"},
        },
        ["command"],
    ),
}
