"""The tap, the lock files, and, in the long form, what the formula would do on this machine."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mlxd.service.homebrew import FILE, PYTHON
from tests.support.daemon import free_port
from tests.support.ruby import run_formula

ROOT = Path(__file__).parents[2]
HOMEBREW = ROOT / "packaging" / "homebrew"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_ENTRY = re.compile(r"^(\S.*?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", re.MULTILINE)


def make_tap(dist: Path) -> str:
    words = [sys.executable, str(HOMEBREW / "tap.py"), str(dist)]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def git(tap: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=tap, check=True, capture_output=True,
                          text=True).stdout  # fmt: skip


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tap in it, made as `make tap` does; a blank in its path."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("a tap")
    lines = make_tap(folder).splitlines()
    assert f'  brew tap mlxd/local "{folder}/tap"' in lines
    assert "  brew install mlxd/local/mlxd" in lines
    return folder


def test_a_tap_has_the_committed_formula_with_a_source(dist: Path) -> None:
    told = run_formula(dist / "tap" / "Formula" / FILE)
    declared = {name: value for name, value, *_ in filter(lambda one: len(one) > 1,
                                                          told["declared"])}  # fmt: skip
    archive = Path(unquote(urlsplit(declared["url"]).path))
    assert declared["url"].startswith("file:///")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == declared["sha256"]
    committed = (HOMEBREW / FILE).read_text().splitlines()
    made = (dist / "tap" / "Formula" / FILE).read_text().splitlines()
    differing = [new for old, new in zip(committed, made, strict=True) if old != new]
    assert [line.split()[0] for line in differing] == ["url", "sha256"]


def test_its_source_has_all_that_the_formula_names(dist: Path) -> None:
    (archive,) = dist.glob("source/*/mlxd-*.tar.gz")
    with tarfile.open(archive) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert names >= {
        *("pyproject.toml", "mlxd/__init__.py", "mlxd/guide/model.safetensors"),
        *("policies/limits.yaml", "policies/schema/limits.schema.json", "etc/mlxd.env"),
        *("packaging/homebrew/requirements.txt", "packaging/homebrew/build.txt"),
    }


@pytest.mark.slow
def test_a_tap_is_a_commit_and_the_same_source_is_none(dist: Path) -> None:
    """What git has is what Homebrew clones; a formula that did not change is no news."""
    assert git(dist / "tap", "ls-files").split() == [f"Formula/{FILE}"]
    before = git(dist / "tap", "rev-parse", "HEAD")
    make_tap(dist)
    assert git(dist / "tap", "rev-parse", "HEAD") == before
    assert git(dist / "tap", "status", "--porcelain") == ""


def entries(name: str) -> dict[str, Requirement]:
    """Of a lock file, which holds nothing else."""
    head, _, text = (HOMEBREW / name).read_text(encoding="utf-8").partition("\n")
    assert f"for Python {PYTHON}" in head
    assert _ENTRY.sub("", text) == ""
    found = [Requirement(entry[1]) for entry in _ENTRY.finditer(text)]
    return {canonicalize_name(one.name): one for one in found}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "requirements.txt",
            [
                *PROJECT["project"]["dependencies"],
                *PROJECT["project"]["optional-dependencies"]["cpu"],
            ],
        ),
        ("build.txt", [*PROJECT["build-system"]["requires"], "setuptools"]),
    ],
)
def test_a_lock_pins_what_the_project_asks_for(name: str, wanted: list[str]) -> None:
    """Else: python packaging/homebrew/lock.py."""
    locked = entries(name)
    for requirement in map(Requirement, wanted):
        (pin,) = locked[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), requirement


def test_mlx_comes_with_the_backend_of_the_platform() -> None:
    locked = entries("requirements.txt")
    backends = {"mlx-metal": 'sys_platform == "darwin"', "mlx-cpu": 'sys_platform == "linux"'}
    for name, marker in backends.items():
        assert locked[name].specifier == locked["mlx"].specifier
        assert str(locked[name].marker) == marker


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_formula_installs_and_serves_a_token(dist: Path, tmp_path: Path) -> None:
    """Its own commands, in an empty environment; then its own test."""
    python = shutil.which(f"python{PYTHON}")
    if python is None or subprocess.run([python, "--version"], check=False).returncode:
        pytest.skip(f"python{PYTHON} is not installed")
    told = run_formula(dist / "tap" / "Formula" / FILE)
    (archive,) = dist.glob("source/*/mlxd-*.tar.gz")
    shutil.unpack_archive(archive, tmp_path, filter="data")
    (source,) = tmp_path.glob("mlxd-*")
    places = {"buildpath": source, "libexec": tmp_path / "libexec", "testpath": tmp_path / "test"}
    kept = {"PATH", "LANG", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"}
    env = {name: value for name, value in os.environ.items() if name in kept}
    env |= {"HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}

    for words in told["alone"]:
        done = subprocess.run(
            placed(words, places), cwd=source, env=env, check=False, capture_output=True, text=True
        )
        if "Failed to establish a new connection" in done.stderr + done.stdout:
            pytest.skip("no package index can be reached")
        assert done.returncode == 0, done.stderr[-2000:]

    port = str(free_port())
    (_, _, *words), (_, asking), *_ = told["test"]
    (tmp_path / "test" / "policies").mkdir(parents=True)
    serving = [word.replace("12345", port) for word in placed(words, places)]
    program = str(tmp_path / "libexec/bin/mlxd")
    with subprocess.Popen([program, *serving], env=env, stderr=subprocess.DEVNULL) as daemon:
        answer = subprocess.run(
            asking.replace("12345", port),
            shell=True,
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        daemon.terminate()
        assert daemon.wait(60) == 0
    assert '"eval_count"' in answer.stdout, answer


def placed(words: list[str], places: dict[str, Path]) -> list[str]:
    """The formula's paths as they are here, with all that a pattern stands for."""
    found: list[str] = []
    for word in words:
        text = re.sub(
            rf"(?<![\w.])/({'|'.join(places)})(?=/|$)", lambda one: str(places[one[1]]), word
        )
        pattern = Path(text)
        found += map(str, pattern.parent.glob(pattern.name)) if "*" in text else [text]
    return found
