"""What the page for Macs would have run is there to be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/macos.md").read_text(encoding="utf-8")
CLAIMS = [line for line in PAGE.splitlines() if re.match(r"\| (?!claim|---)", line)]


def test_every_claim_has_something_to_do_and_to_see() -> None:
    assert len(CLAIMS) > 30
    for line in CLAIMS:
        claim, command, seen = re.split(r" (?<!\\)\| ", line.strip("| "))
        assert all((claim, command, seen))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:tests|benchmarks)/[\w/.]+", PAGE))))
def test_what_is_run_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("module", "name"), re.findall(r"from (mlxd[\w.]+) import (\w+)", PAGE))
def test_what_is_imported_is_there(module: str, name: str) -> None:
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)
