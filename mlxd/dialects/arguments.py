"""What the tool calls of a conversation were given, as chat templates want it: an object."""

from __future__ import annotations

from typing import Any

from mlxd.core.errors import InvalidRequest
from mlxd.dialects.base import to_json
from mlxd.dialects.embedded import MOST_VALUES, decode_object, decode_text, values_in
from mlxd.dialects.fields import Json


class Arguments:
    """Of one conversation: JSON within JSON is counted over all its calls before it is parsed."""

    def __init__(self) -> None:
        self._values = 0

    def read(self, value: Any, path: str) -> Json:
        """An object, or one in a string. Anything else, such as what is left of a call that was
        cut, is the call's `input`: clients send it again in each turn to come.
        """
        if isinstance(value, dict):
            return value
        if value is None or value == "":
            return {}
        if not isinstance(value, str):
            return {"input": to_json(value).decode()}
        self._count(value, path)
        found = decode_object(value)
        if found is not None:
            return found
        text = decode_text(value)
        if text is None:
            text = value
        return {"input": text} if text else {}

    def _count(self, text: str, path: str) -> None:
        self._values += values_in(text)
        if self._values > MOST_VALUES:
            raise InvalidRequest(
                f"too many values in the arguments of tool calls; at most {MOST_VALUES} are read",
                param=path,
            )
