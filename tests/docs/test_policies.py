"""docs/reference/policies.md has every field, its default and whether it is enforced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxd.policy import keys

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
ROWS = {
    match[1]: match[0] for match in re.finditer(r"^\| `([a-z_.<>\[\]]+)` \|.*$", TEXT, re.MULTILINE)
}
FIELDS = [key for key in keys.table().values() if key.description and not key.section]


def test_every_field_has_a_row_and_no_row_is_of_a_field_that_is_gone() -> None:
    files = {key.name for key in FIELDS if len(key.path) == 1}
    assert set(ROWS) == {key.name for key in FIELDS} - files


@pytest.mark.parametrize("key", [key for key in FIELDS if len(key.path) > 1], ids=lambda k: k.name)
def test_a_row_says_what_is_taken_and_meant(key: keys.Key) -> None:
    row = ROWS[key.name]
    assert key.description in row
    assert key.expected.partition(" such as")[0] in row
    assert ("Not enforced yet" in row) == (not key.enforced)


def test_every_file_has_its_chapter() -> None:
    kinds = {path[0] for path in keys.table()}
    assert set(re.findall(r"^## (\w+)\.yaml$", TEXT, re.MULTILINE)) == kinds
