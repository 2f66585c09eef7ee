"""The reference and the shipped files say what the schema says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from mlxd.policy import keys, reference
from mlxd.policy.load import load
from mlxd.policy.schema import KINDS
from tests.support.each import each

ROOT = Path(__file__).parent.parent.parent
RELOADS = {"live", "live-drain", "rebind", "rolling", "restart", "boot"}
AGAIN = "write it anew: python -m mlxd.policy.reference"
whole, shipped = cache(reference.reference), cache(reference.shipped)
LEAVES = [key for key in keys.table().values() if key.owner is not None and not key.section]


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


@each(LEAVES, lambda key: key.name)
def test_a_field_is_explained_everywhere(key: keys.Key) -> None:
    assert key.description.endswith(".")
    assert key.extra("reload") in RELOADS
    assert f"`{key.name}`" in whole()
    assert re.search(rf"\b{key.path[-1]}:", shipped(key.path[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_commented_out_can_be_commented_in(kind: str, tmp_path: Path) -> None:
    lines = reference.shipped(kind).splitlines()
    begins = [n for n, line in enumerate(lines) if re.match(r" *# [a-z_]+:( |$)", line)]
    for begin in begins:
        indent, _, first = lines[begin].partition("# ")
        if not _a_key(kind, first):
            continue
        example = [first]
        for line in lines[begin + 1 :]:
            if not line.startswith(f"{indent}#  "):
                break
            example.append(line.removeprefix(f"{indent}# "))
        above = [line for line in lines[:begin] if not _replaced(line, indent, first)]
        text = "\n".join([*above, *(indent + line for line in example)])
        (tmp_path / f"{kind}.yaml").write_text(f"{text}\n", encoding="utf-8")
        assert load(tmp_path).policies != load().policies, first


def _a_key(kind: str, line: str) -> bool:
    """Whether it is no sentence of a comment."""
    return any(path[0] == kind and path[-1] == line.partition(":")[0] for path in keys.table())


def _replaced(line: str, indent: str, first: str) -> bool:
    """Whether it sets the default of the key that the example sets; chains come with entries."""
    name = first.partition(":")[0]
    chain = name == "chains" and re.match(r"  (default|reasoning|coding|fast|tiny): ", line)
    return bool(line.startswith(f"{indent}{name}:") or chain)


def test_there_is_an_example_for_each_value_that_shows_nothing() -> None:
    text = "".join(reference.shipped(kind) for kind in KINDS)
    for name in ("models", "chains", "tenants", "per_model", "preload", "trusted_proxies", "url"):
        assert re.search(rf"^ *# {name}:", text, re.MULTILINE), name


def test_every_key_names_what_it_takes() -> None:
    assert keys.table()[("server", "listen", "port")].expected == "an integer 1 to 65535"
    assert keys.table()[("clients", "auth", "required")].expected == "auto, true or false"
    assert keys.table()[("models", "max_loaded")].expected == "auto or an integer >= 1"
    budget = keys.table()[("supervision", "worker", "budget")]
    assert budget.expected == "a list of at least 1, each a mapping"
    cache = keys.table()[("memory", "prefix_cache", "disk")]
    assert cache.expected.partition(" such as")[0] == "auto, off or a size above zero"
    assert all(key.expected for key in keys.table().values())
