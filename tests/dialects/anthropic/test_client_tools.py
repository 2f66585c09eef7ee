"""Tools of Anthropic's own that the client runs."""

from __future__ import annotations

import jsonschema
import pytest

from mlxd.core.errors import UnsupportedFeature
from mlxd.dialects.anthropic import MessagesCodec
from mlxd.dialects.fields import Json


def told(kind: str, name: str) -> Json:
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": kind, "name": name}],
    }
    (tool,) = MessagesCodec().parse(body, id="abc", now=5.0).request.tools
    assert tool["type"] == "function"
    found: Json = tool["function"]
    assert found["name"] == name
    return found


@pytest.mark.parametrize(
    ("kind", "name", "calls"),
    [
        ("bash_20250124", "bash", [{"command": "ls"}, {"restart": True}]),
        (
            "text_editor_20250728",
            "str_replace_based_edit_tool",
            [
                {"command": "view", "path": "/a", "view_range": [1, -1]},
                {"command": "insert", "path": "/a", "insert_line": 0, "insert_text": "x"},
            ],
        ),
        ("text_editor_20250124", "str_replace_editor", [{"command": "create", "path": "/a"}]),
        (
            "memory_20250818",
            "memory",
            [
                {"command": "delete", "path": "/memories/a"},
                {"command": "rename", "old_path": "/memories/a", "new_path": "/memories/b"},
            ],
        ),
    ],
)
def test_it_is_told_as_a_function_that_takes_its_calls(
    kind: str, name: str, calls: list[Json]
) -> None:
    function = told(kind, name)
    assert function["description"]
    for call in calls:
        jsonschema.validate(call, function["parameters"])


@pytest.mark.parametrize("kind", ["web_search_20250305", "computer_20250124", "bash", "bash_", "x"])
def test_any_other_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedFeature):
        told(kind, "t")
