"""docs/reference/policies.md has every field: what it takes, its default, an example."""

from __future__ import annotations

import re
from pathlib import Path

from mlxd.policy import keys
from tests.support.each import each

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
COLUMNS = ("key", "takes", "default", "unit", "reload", "example", "meaning")
ROWS = {
    match[1]: match[0].strip("| ").split(" | ")
    for match in re.finditer(r"^\| `([a-z_.<>\[\]]+)` \|.*$", TEXT, re.MULTILINE)
}
FIELDS = [key for key in keys.table().values() if key.owner is not None and not key.section]


def test_every_field_has_a_row_and_no_row_is_of_a_field_that_is_gone() -> None:
    assert set(ROWS) == {key.name for key in FIELDS}


def test_every_chapter_has_these_columns() -> None:
    heads = re.findall(r"^\| (key \|.*) \|$", TEXT, re.MULTILINE)
    assert heads == [" | ".join(COLUMNS)] * len({path[0] for path in keys.table()})


@each(FIELDS, lambda key: key.name)
def test_a_row_says_what_is_taken_and_meant(key: keys.Key) -> None:
    row = dict(zip(COLUMNS, ROWS[key.name], strict=True))
    assert row["takes"] == key.expected.partition(" such as")[0]
    assert row["default"] in (f"`{key.default}`", "–")
    assert row["unit"] == (key.extra("unit") or "–")
    assert row["reload"] == key.extra("reload")
    assert row["example"] == f"`{key.example}`"
    assert row["meaning"].startswith(key.description)


def test_every_file_has_its_chapter() -> None:
    kinds = {path[0] for path in keys.table()}
    assert set(re.findall(r"^## (\w+)\.yaml$", TEXT, re.MULTILINE)) == kinds
