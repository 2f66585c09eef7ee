"""docs/reference/events.md lists every type of event, its level and what it carries."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from mlxd.policy.schema.supervision import Event as Posted
from mlxd.server.webhook import ATTEMPTS
from mlxd.telemetry.events import KEPT, PRIVATE, TYPES
from tests.support.daemon import Daemon
from tests.support.sources import sources

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reference/events.md").read_text(encoding="utf-8")
ROWS = {
    name: (level, set(re.findall(r"`(\w+)`", data)))
    for name, level, data in re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| ", TEXT, re.MULTILINE)
}
TELLING = {"record", "on_event", "_record", "_tell", "_say"}


def recorded() -> Iterator[tuple[str, ast.expr]]:
    """The types that mlxd's own files name where they tell of something, and in which words."""
    telling = (source for source in sources() if source.says(*(f".{name}(" for name in TELLING)))
    for source in telling:
        for node in source.nodes(ast.Call):
            if len(node.args) < 2:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            first = node.args[0]
            if name in TELLING and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield str(first.value), node.args[1]


def words(said: ast.expr) -> str:
    """Of a message with values in it, as a pattern."""
    parts = said.values if isinstance(said, ast.JoinedStr) else [said]
    return "".join(
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts
    )


def test_every_type_is_listed_with_its_level() -> None:
    levels = {name: logging.getLevelName(level).lower() for name, level in TYPES.items()}
    assert {name: level for name, (level, _) in ROWS.items()} == levels


def test_every_type_that_is_told_is_known() -> None:
    found = {name for name, _ in recorded()}
    assert {"reload", "reject", "memory_action", "model_pulled", "model_copied"} <= found
    assert found <= set(TYPES)


def test_every_type_that_is_listed_is_told_somewhere() -> None:
    assert {name for name, _ in recorded()} >= ROWS.keys()


def test_its_example_is_told_in_the_words_of_the_code() -> None:
    example = json.loads(re.findall(r"^```json\n(.*)\n```$", TEXT, re.MULTILINE)[0])
    told = [words(said) for name, said in recorded() if name == example["type"]]
    assert [words for words in told if re.fullmatch(words, example["message"])]


def test_what_can_be_posted_is_a_type() -> None:
    assert set(get_args(Posted)) <= set(TYPES)


def test_its_numbers_are_the_real_ones() -> None:
    assert f"The last {KEPT} are kept" in TEXT
    assert f"given up after {ATTEMPTS} attempts" in TEXT
    named = re.search(r"^Over TCP (.*) are left out\.$", TEXT, re.MULTILINE)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == PRIVATE


def test_what_an_event_carries_is_what_is_listed(shared_daemon: Daemon) -> None:
    shared_daemon.http.post("/api/generate", json={"model": "tiny-a"})
    shared_daemon.reload()
    told = shared_daemon.admin.get("/admin/events")["events"]
    assert {"worker_up", "load", "reload"} <= {event["type"] for event in told}
    for event in told:
        assert set(event["data"]) == ROWS[event["type"]][1], event["type"]
