"""The verbs: what they would run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TESTED = "packaging/tested.txt"
VERBS = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)


def plan(folder: Path, *arguments: str) -> str:
    """What `make` would run in a checkout without an environment."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not here")
    for name in ("Makefile", "pyproject.toml", TESTED):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return subprocess.run(
        [make, "--dry-run", "--no-print-directory", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout


def in_order(text: str, *pieces: str) -> bool:
    places = [text.find(piece) for piece in pieces]
    return -1 not in places and places == sorted(places)


def test_serve_sets_up_what_it_needs(tmp_path: Path) -> None:
    planned = plan(tmp_path, "serve", "EXTRA=[cpu]")
    served = "exec .venv/bin/mlxd serve --policies policies --state .state"
    installed = f"--constraint {TESTED} --editable '.[cpu]'"
    assert in_order(planned, "packaging/make-venv .venv", installed, served)
    assert "--group dev" not in planned


def test_test_checks_first(tmp_path: Path) -> None:
    planned = plan(tmp_path, "test")
    steps = (
        f"--constraint {TESTED} --group dev",
        "ruff format --check",
        "ruff check",
        "mypy",
        "lint-imports",
        "-m pytest",
    )
    assert in_order(planned, *steps)


def test_what_is_tested_is_pinned() -> None:
    """Else: make upgrade."""
    lines = (ROOT / TESTED).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions: dict[str, str] = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        versions[canonicalize_name(pin.name)] = specifier.version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *extras["cpu"],
        *extras["otel"],
        *project["dependency-groups"]["dev"],
    ]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_clients_are_set_up_apart_from_what_mlxd_runs_on(tmp_path: Path) -> None:
    pinned = Path("tests", "clients_real", "environments")
    shutil.copytree(ROOT / pinned, tmp_path / pinned)
    planned = plan(tmp_path, "test-clients")
    for name in ("newest", "llama_index", "instructor"):
        made = f"-m venv --without-pip .venv-clients/{name}"
        filled = (
            f"--python .venv-clients/{name} install --no-deps --requirement {pinned}/{name}.txt"
        )
        assert in_order(planned, "--group dev", made, filled, "tests.clients_real.run")
    assert in_order(planned, f"{pinned}/node/install .venv-clients/newest .venv-clients/node")
    assert "venv-clients" not in plan(tmp_path, "test")


def test_what_clients_bring_along_is_pinned() -> None:
    pinned = ROOT / "tests" / "clients_real" / "environments"
    for file in pinned.glob("*.txt"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
        names = {re.split(r"==| ;", line)[0] for line in lines}
        assert all(re.match(r"[\w-]+==[\w.]+( ;|$)", line) for line in lines), file
        wanted = file.with_suffix(".in").read_text(encoding="utf-8").split()
        assert {re.split(r"[\[>=]", name)[0] for name in wanted} <= names
    package = json.loads((pinned / "node" / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((pinned / "node" / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["packages"][""]["dependencies"] == package["dependencies"]
    assert all("integrity" in found for name, found in lock["packages"].items() if name)


def test_each_verb_is_helped_with(tmp_path: Path) -> None:
    planned = plan(tmp_path)
    for verb in set(VERBS) - {"help"}:
        assert f"make {verb} " in planned
    assert set(re.findall(r"[\w-]+", MAKEFILE.partition(".PHONY:")[2].partition("\n")[0])) == set(
        VERBS
    )


def test_nothing_newer_than_the_make_of_macos() -> None:
    """That is GNU make 3.81."""
    newer = r"\.ONESHELL|^\w+\s*!=|\$\(file |^\w+\s*::?::?=\s*$|\.RECIPEPREFIX|&:"
    assert re.findall(newer, MAKEFILE, re.MULTILINE) == []


def test_what_runs_before_a_change_lands_is_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^\s*make (\w+)$", script, re.MULTILINE) == ["test"]


def test_the_commit_hooks_are_the_checks() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    for hook in ("ruff", "ruff-format", "mypy", "lint-imports", "trailing-whitespace",
                 "end-of-file-fixer", "check-yaml", "check-toml", "check-added-large-files",
                 "check-merge-conflict"):  # fmt: skip
        assert f"- id: {hook}\n" in hooks
