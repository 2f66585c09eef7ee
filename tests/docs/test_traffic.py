"""docs/reference/traffic.md lists every field of every line of the traffic log."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mlxd.simulate.traffic.expect import MEASURES, parse
from mlxd.simulate.traffic.expect import SCHEMA as SCHEMA_OF_OBJECTIVES
from mlxd.telemetry.traffic import SCHEMA, Evicted, Known, Loaded, Missing, Opening, Request

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "reference/traffic.md").read_text(encoding="utf-8")
GUIDE = (DOCS / "guides/simulate.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def fields_of(line: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(line)}


@pytest.mark.parametrize(("line", "kind"), [(Opening, "file"), (Request, "request")])
def test_every_field_is_listed(line: type[msgspec.Struct], kind: str) -> None:
    table = SECTIONS[f'`"line": "{kind}"`']
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == fields_of(line)


@pytest.mark.parametrize(("line", "kind"), [(Loaded, "load"), (Evicted, "evict"),
                                            (Missing, "lost")])  # fmt: skip
def test_so_is_every_field_of_the_short_ones(line: type[msgspec.Struct], kind: str) -> None:
    rows = re.findall(rf"^\| `{kind}` \| (.*?) \|", TEXT, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == fields_of(line)


def test_what_is_known_of_a_model_is_listed() -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith("| `models`"))
    assert fields_of(Known) < set(re.findall(r"`(\w+)`", row))


def test_the_schema_is_the_present_one() -> None:
    assert f"| `schema` | `{SCHEMA}` |" in TEXT


def test_the_guides_objectives_are_some() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    [objectives] = [text for text in blocks if SCHEMA_OF_OBJECTIVES in text]
    assert len(parse(objectives.encode(), "expect.yaml")) == 3


def test_the_guide_names_every_measure() -> None:
    assert all(f"`{measure}`" in GUIDE for measure in MEASURES)
