"""The formula, by what a real Ruby makes of it, and by the rules that `brew style` has."""

from __future__ import annotations

import json
import plistlib
import re
import shlex
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from mlxd import __version__, cli
from mlxd.policy.load import load
from mlxd.service import homebrew, launchd, systemd
from mlxd.service.facts import facts
from mlxd.service.layout import Layout
from tests.support.ruby import run_formula

COMMITTED = Path(__file__).parents[2] / "packaging" / "homebrew" / homebrew.FILE
FACTS = facts(load())
ODD = r"""#{1} #$0 #@a \n's"""
"""Ruby would read all of it."""
LAYOUT = replace(homebrew.BREW, logs=PurePosixPath("/brew.var/log", ODD))
THERE = Layout(
    program=PurePosixPath("/opt_bin/mlxd"),
    policies=PurePosixPath("/pkgetc/policies"),
    state=PurePosixPath("/var/mlxd"),
    logs=PurePosixPath("/var/log", ODD),
)
"""The same, where the folders of tests/support/formula.rb are."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Ruby made of the formula."""
    file = tmp_path_factory.mktemp("formula") / homebrew.FILE
    file.write_text(homebrew.formula(FACTS, LAYOUT)[homebrew.FILE])
    return run_formula(file)


def test_brew_services_finds_our_files(told: dict[str, Any]) -> None:
    """By the names of the service, in the formula's folder, as launchd's and systemd's own are."""
    plist = told["files"][f"/prefix/{told['service']['macos']}.plist"]
    unit = told["files"][f"/prefix/{told['service']['linux']}.service"]
    assert plistlib.loads(plist.encode()) == plistlib.loads(
        launchd.agent(FACTS, THERE)[launchd.FILE].encode()
    )
    assert unit == systemd.user(FACTS, THERE)[systemd.SERVICE]
    assert plistlib.loads(plist.encode())["Label"] == told["service"]["macos"]


def test_nothing_comes_unless_its_hash_is_known(told: dict[str, Any]) -> None:
    fetching, installing = (
        [words for words in told[phase] if "pip" in words] for phase in ("fetch", "install")
    )
    assert fetching
    assert installing
    assert all("--require-hashes" in words for words in fetching)
    assert all("--no-index" in words for words in installing)
    assert ["allow_network_access!", "test"] in told["declared"]


def test_an_older_homebrew_fetches_while_it_installs(told: dict[str, Any]) -> None:
    assert told["alone"] == told["fetch"] + told["install"]


def test_an_edited_policy_survives(told: dict[str, Any]) -> None:
    """`pkgetc` keeps what is there; the commands and the service look where it is."""
    assert told["copied"] == {"/pkgetc": ["policies", "etc/mlxd.env"]}
    assert told["scripts"] == {
        "/bin/mlxd": [
            "/libexec/bin/mlxd",
            {
                "MLXD_POLICIES": "${MLXD_POLICIES:-/pkgetc/policies}",
                "MLXD_STATE": "${MLXD_STATE:-/var/mlxd}",
            },
        ]
    }
    assert "/pkgetc/policies" in told["caveats"]
    assert f"http://{FACTS.address}" in told["caveats"]


def test_its_own_test_starts_asks_and_stops_a_daemon(told: dict[str, Any]) -> None:
    (_, program, *words), (_, command), *stop = told["test"]
    assert program == "/bin/mlxd"
    assert cli._parser().parse_args(words).port == "12345"
    asked = shlex.split(command)
    assert asked[0] == "curl"
    assert asked[-1] == "http://127.0.0.1:12345/api/generate"
    assert json.loads(asked[asked.index("--data") + 1])["model"] == "mlxd-guide"
    assert stop == [["kill", "TERM", 77], ["wait", 77]]


def test_what_it_declares(told: dict[str, Any]) -> None:
    declared = told["declared"]
    assert ["license", "Apache-2.0"] in declared
    assert ["depends_on", f"python@{homebrew.PYTHON}"] in declared
    assert ["url", f"file:///mlxd-{__version__}.tar.gz"] in declared
    assert ["preserve_rpath"] in declared
    order = ["desc", "homepage", "url", "sha256", "license", "depends_on", "on_macos",
             "preserve_rpath", "allow_network_access!"]  # fmt: skip
    names = list(dict.fromkeys(name for name, *_ in declared))
    assert names == order


def test_brew_style() -> None:
    """The rules that a change would break first; `brew style` knows all of them."""
    text = COMMITTED.read_text(encoding="utf-8")
    assert text.isascii()
    assert "\t" not in text
    assert not re.search(r"[ \t]$|\n\n\n|\n\n\Z", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 118
    (desc,) = re.findall(r'^  desc "(.*)"$', text, re.MULTILINE)
    assert len(desc) <= 80
    assert re.match(r"(?!An? |The |Mlxd)[A-Z]", desc)
    assert not desc.endswith(".")
    assert re.search(r'^  homepage "https://', text, re.MULTILINE)
    assert re.search(r'^  sha256 "[0-9a-f]{64}"$', text, re.MULTILINE)
