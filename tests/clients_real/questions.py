"""What the clients ask, and of whom."""

from __future__ import annotations

import base64
from typing import Any

TINY = "tiny-a"
"""A random model: it says nothing that makes sense."""
ENDLESS = "endless"
"""Random too; its greedy text goes in circles and never ends by itself."""
GUIDE = "mlxd-guide"
"""Trained: it knows the port, calls the tool, and ends by itself."""
TOOLBOX = "toolbox"
"""Random, with a template for tools."""
THINKER = "thinker"
"""Random, with a template that opens a thought."""
NOBODY = "nobody"

PORT = "What port does mlxd use?"
WEATHER = "What is the weather in Paris?"
FOXES = "Tell me something about foxes."
JSON = "Which port does mlxd listen on? Answer in JSON."

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "required": ["city"],
    "properties": {"city": {"type": "string", "description": "its name"}},
}
FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the current weather of a city",
    "parameters": PARAMETERS,
}
BOUNDED: dict[str, Any] = {
    **PARAMETERS,
    "properties": {"city": {"type": "string", "maxLength": 12}},
}
"""For a random model, which would never end a text by itself."""
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "grown": {"type": "boolean"},
    },
    "required": ["name", "age", "grown"],
    "additionalProperties": False,
}
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
        "0000000049454e44ae426082"
    )
).decode()
"""A PNG of one pixel."""
