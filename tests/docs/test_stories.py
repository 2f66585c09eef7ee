"""docs/reference/stories.md lists every fact of a story and every note, with what it carries."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mlxd.cli.story import _NOTES, lines_of, row_of
from mlxd.control.telling import _EACH
from mlxd.core.caller import Caller
from mlxd.core.story import MOST_NOTES, Story
from mlxd.server.stories import as_json
from tests.support.sources import sources

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reference/stories.md").read_text(encoding="utf-8")
FACTS, TOLD = TEXT.partition("## Facts")[2].split("## Notes")
LISTED = {
    what: set(re.findall(r"`(\w+)`", facts))
    for what, facts in re.findall(r"^\| `(\w+)` \| ([^|]*)\| ", TOLD, re.MULTILINE)
}
LINE = {"policy", "value", "place"}


def told() -> Iterator[tuple[str, set[str]]]:
    """The notes that mlxd's own files tell, with the facts that they name there."""
    telling = (source for source in sources() if source.says(".note(", "._note("))
    for source in telling:
        for node in source.nodes(ast.Call):
            if _is_note(node):
                yield from ((what, _named(node)) for what in _words(node.args[0]))


def _is_note(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute) or not call.args:
        return False
    whose = ast.unparse(call.func.value)
    return call.func.attr in {"note", "_note"} and (whose.endswith("story") or whose == "self")


def _words(node: ast.expr) -> Iterator[str]:
    return (
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    )


def _named(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg is not None}


def test_every_note_is_listed_and_is_told_somewhere() -> None:
    assert {what for what, _ in told()} == LISTED.keys()


def test_a_notes_facts_are_those_that_are_listed() -> None:
    named: dict[str, set[str]] = {what: set() for what in LISTED}
    for what, facts in told():
        named[what] |= facts
    for what in LISTED.keys() - {"refused", "failed"}:
        assert named[what] <= LISTED[what], what
        assert LISTED[what] - named[what] <= LINE | {"because"}, what


def story() -> Story:
    return Story("r", "/p", Caller("c"), 1, 0.0, lambda: 0.0, 0.0)


def test_every_fact_is_listed() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| ", FACTS, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == as_json(story()).keys() | {"waits", "slow_prompt"}


def test_its_numbers_are_the_real_ones() -> None:
    assert f"the first {MOST_NOTES};" in FACTS
    assert f"of up to {_EACH} generations" in TOLD


def test_every_note_has_words_of_its_own() -> None:
    """`mlxd explain` tells it without its keys."""
    assert LISTED.keys() == _NOTES.keys()


def test_a_story_that_tells_nothing_yet_is_told() -> None:
    bare = as_json(story()) | {"waits": None}
    assert "it is under way" in "\n".join(lines_of(bare))
    assert row_of(bare)[-1] == "under way"
