"""What is committed under packaging/ is what the code renders."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.service import homebrew
from mlxd.service.golden import golden
from mlxd.service.layout import BREW_MAC
from mlxd.service.render import TARGETS, NoSuchTarget, joined, target

PACKAGING = Path(__file__).parents[2] / "packaging"


def test_what_is_committed_is_what_is_rendered() -> None:
    for name, content in golden().items():
        committed = (PACKAGING / name).read_text(encoding="utf-8")
        assert committed == content, f"{name}: python -m mlxd.service.golden"


def test_nothing_of_a_target_that_is_gone_is_committed() -> None:
    """A name that is rendered no more would be shipped for ever."""
    rendered = {PACKAGING / name for name in golden()}
    kinds = {file.suffix for file in rendered}
    for folder in {one.folder.partition("/")[0] for one in TARGETS}:
        committed = {file for file in (PACKAGING / folder).rglob("*") if file.suffix in kinds}
        assert committed <= rendered


def test_the_agent_that_is_committed_is_the_one_that_homebrew_installs() -> None:
    folders = {
        "/brew.opt_bin": "/opt/homebrew/opt/mlxd/bin",
        "/brew.pkgetc": "/opt/homebrew/etc/mlxd",
        "/brew.var": "/opt/homebrew/var",
    }
    in_formula, on_mac = repr(homebrew.BREW), repr(BREW_MAC)
    for method, folder in folders.items():
        in_formula = in_formula.replace(method, folder)
    assert in_formula == on_mac


def test_a_target_is_named_by_itself_or_by_manager_and_scope() -> None:
    assert target("launchd").name == target("launchd", "user").name == "launchd"
    assert target("launchd", "system").name == "launchd-daemon"
    assert target("launchd-daemon").name == target("launchd-daemon", "system").name
    with pytest.raises(NoSuchTarget, match="runit"):
        target("runit")
    with pytest.raises(NoSuchTarget, match="launchd-daemon"):
        target("launchd-daemon", "user")


def test_several_files_are_told_apart_by_a_comment() -> None:
    assert joined({"a": "x\n"}) == "x\n"
    assert joined({"a": "x\n", "b": "y\n"}) == "# ---- a\nx\n\n# ---- b\ny\n"
