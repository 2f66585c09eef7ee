"""docs/reference/traces.md lists every span and attribute, and the real numbers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mlxd.core.story import MOST_LEGS
from mlxd.server.otlp import SECONDS
from mlxd.telemetry.span_sink import MOST_WAITING

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reference/traces.md").read_text(encoding="utf-8")
SPANS, ATTRIBUTES = TEXT.partition("## Spans")[2].split("## Attributes")
NAME = re.compile(r"(?:http|url|error|mlxd|gen_ai|process)\.[a-z_.]+")


def words() -> set[str]:
    """All text in the code that makes spans."""
    tree = ast.parse((ROOT / "mlxd/telemetry/spans.py").read_text(encoding="utf-8"))
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def test_every_attribute_is_listed() -> None:
    listed = set(re.findall(r"^\| `([^`]*)` \|", ATTRIBUTES, re.MULTILINE))
    assert listed == {word for word in words() if NAME.fullmatch(word)}


def test_every_span_is_listed() -> None:
    listed = set(re.findall(r"^\| `([^`]*)` \|", SPANS, re.MULTILINE))
    assert listed == {"POST <route>", "queue", "load", "worker", "prefill", "decode"}
    assert listed - {"POST <route>"} < words()
    assert set(re.findall(r"event `(\w+)`", SPANS)) == {"first_token", "replayed"} < words()


def test_its_numbers_are_the_real_ones() -> None:
    assert f"Up to {MOST_WAITING} spans wait" in TEXT
    assert f"up to {MOST_LEGS}," in SPANS
    assert SECONDS == 5, "within five seconds"
