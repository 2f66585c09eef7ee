"""The reference and the shipped files say what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxd.policy import keys, reference
from mlxd.policy.load import load
from mlxd.policy.schema import KINDS

ROOT = Path(__file__).parent.parent.parent
RELOADS = {"live", "live-drain", "rebind", "rolling", "restart", "boot"}
AGAIN = "write it anew: python -m mlxd.policy.reference"
LEAVES = [key for key in keys.table().values() if key.description and not key.section]


def test_the_reference_is_current() -> None:
    text = (ROOT / "docs/reference/policies.md").read_text(encoding="utf-8")
    assert text == reference.reference(), AGAIN


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_file_is_current(kind: str) -> None:
    text = (ROOT / f"policies/{kind}.yaml").read_text(encoding="utf-8")
    assert text == reference.shipped(kind), AGAIN
    assert max(map(len, text.splitlines())) <= reference.WIDTH


def test_the_shipped_files_are_the_built_in_defaults() -> None:
    shipped = load(ROOT / "policies")
    assert shipped.policies == load().policies
    assert shipped.warnings() == load().warnings()


def test_nothing_else_is_shipped() -> None:
    assert {file.name for file in (ROOT / "policies").glob("*.yaml")} == {
        f"{kind}.yaml" for kind in KINDS
    }


@pytest.mark.parametrize("key", LEAVES, ids=lambda key: key.name)
def test_a_field_is_explained_everywhere(key: keys.Key) -> None:
    assert key.description.endswith(".")
    assert key.extra("reload") in RELOADS
    assert f"`{key.name}`" in reference.reference()
    assert re.search(rf"\b{key.path[-1]}:", reference.shipped(key.path[0]))


def test_examples_are_valid(tmp_path: Path) -> None:
    """What is commented out in a shipped file can be commented in."""
    for kind in KINDS:
        lines = reference.shipped(kind).splitlines()
        begins = [n for n, line in enumerate(lines) if re.match(r"# (models|chains):", line)]
        for begin in begins:
            example = [line.removeprefix("# ") for line in lines[begin:] if line.startswith("# ")]
            body = [line for line in example if re.match(r"\S+:|\s", line)]
            text = "\n".join(["schema: mlxd/v1", *body[: len(body) if "models" in body[0] else 1]])
            (tmp_path / f"{kind}.yaml").write_text(text + "\n")
            assert load(tmp_path).policies != load().policies
            (tmp_path / f"{kind}.yaml").unlink()


def test_every_key_names_what_it_takes() -> None:
    assert keys.table()[("server", "listen", "port")].expected == "an integer 1 to 65535"
    assert keys.table()[("clients", "auth", "required")].expected == "auto, true or false"
    assert keys.table()[("models", "max_loaded")].expected == "auto or an integer >= 1"
    assert all(key.expected for key in keys.table().values())
