"""What the parts of an item say."""

from __future__ import annotations

from mlxd.core.errors import InvalidRequest, UnsupportedFeature
from mlxd.dialects.fields import Fields
from mlxd.dialects.media import unread

TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_OTHER_MEDIA = ("input_image", "input_file", "input_audio", "computer_screenshot")


def texts(fields: Fields, name: str, *, by_tool: bool = False) -> list[str]:
    """Of a string, or of an array of parts; other media are refused, but not those of a tool."""
    value = fields.get(name)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise fields.wrong(name, "string or array of parts")
    return [_text(part, by_tool=by_tool) for part in fields.each(name)]


def _text(fields: Fields, *, by_tool: bool) -> str:
    kind = fields.text("type")
    path = fields.path("type")
    if kind in _OTHER_MEDIA:
        if by_tool:
            return unread(kind)
        raise UnsupportedFeature(
            f"content of type {kind} is not offered: this model reads text only", param=path
        )
    if kind not in (*TEXTS, "refusal"):
        raise InvalidRequest(f"Invalid value for '{path}': expected input_text.", param=path)
    name = "refusal" if kind == "refusal" else "text"
    text = fields.text(name)
    if text is None:
        raise fields.wrong(name, "string")
    return text
