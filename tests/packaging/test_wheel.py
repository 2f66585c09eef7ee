"""The wheel: what is in it, and that what it installs works on its own."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from mlxd import __version__
from mlxd.policy.schema import KINDS
from tests.support.installed import check_a_token, environment, served
from tests.support.sources import sources

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "mlxd" / "guide"
PAGE = ROOT / "mlxd" / "server" / "page" / "static"
MOST_BYTES = 5 * 2**20
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"mlxd-{__version__}.dist-info/METADATA").decode())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `mlxd` of a fresh environment, whose dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run(
        [*command, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True, timeout=200
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "mlxd"


def run(command: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Away from the checkout, so that nothing of it is found."""
    home = Path(variables["HOME"])
    return subprocess.run(
        [str(command), *arguments],
        env=variables,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_holds_every_module_and_nothing_else(names: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mlxd").rglob("*.py")}
    assert modules <= names
    strangers = {
        name
        for name in names
        if not name.startswith(("mlxd/", f"mlxd-{__version__}.dist-info/")) or "__pycache__" in name
    }
    assert strangers == set()


def test_it_holds_the_shipped_policies(names: set[str], wheel: Path) -> None:
    held = {name for name in names if name.startswith("mlxd/policies/")}
    assert held == {f"mlxd/policies/{kind}.yaml" for kind in KINDS} | {
        f"mlxd/{file.relative_to(ROOT)}"
        for pattern in ("policies/schema/*.json", "policies/tests/*.yaml")
        for file in ROOT.glob(pattern)
    }
    with zipfile.ZipFile(wheel) as archive:
        for name in held:
            assert archive.read(name) == (ROOT / name.removeprefix("mlxd/")).read_bytes()


def service_files() -> set[str]:
    """What service managers are given, as it is committed."""
    folders = (ROOT / "packaging" / manager for manager in ("systemd", "launchd"))
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(ROOT)) for file in files}


def test_it_holds_the_service_files(names: set[str], wheel: Path) -> None:
    held = {name for name in names if name.startswith("mlxd/packaging/")}
    assert held == {f"mlxd/{name}" for name in service_files()}
    with zipfile.ZipFile(wheel) as archive:
        for name in held:
            assert archive.read(name) == (ROOT / name.removeprefix("mlxd/")).read_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("hatchling"), reason="no hatchling")
def test_the_source_archive_holds_what_a_wheel_is_made_of() -> None:
    from hatchling.builders.sdist import SdistBuilder

    held = {one.distribution_path for one in SdistBuilder(str(ROOT)).recurse_included_files()}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mlxd").rglob("*.py")}
    policies = {f"policies/{kind}.yaml" for kind in KINDS}
    guide = {str(path.relative_to(ROOT)) for path in GUIDE.iterdir() if path.is_file()}
    assert modules | policies | guide | service_files() | {"LICENSE", "README.md"} <= held


def test_it_holds_the_guide(names: set[str]) -> None:
    files = {path.name for path in GUIDE.iterdir() if path.is_file()}
    assert {f"mlxd/guide/{name}" for name in files} <= names


def test_it_holds_the_page(names: set[str]) -> None:
    files = [file for file in PAGE.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert {file.relative_to(ROOT).as_posix() for file in files} <= names


def test_it_says_that_it_is_typed(names: set[str]) -> None:
    assert "mlxd/py.typed" in names


def test_it_holds_the_license(names: set[str], metadata: Message) -> None:
    assert f"mlxd-{__version__}.dist-info/licenses/LICENSE" in names
    assert metadata["License-Expression"] == "Apache-2.0"


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES
    assert wheel.name == f"mlxd-{__version__}-py3-none-any.whl"


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Provides-Extra") == ["cpu", "cuda13", "otel"]
    required = metadata.get_all("Requires-Dist") or []
    assert [line for line in required if line.startswith("mlx==")]
    assert [line for line in required if line.startswith("mlx-lm==")]
    backends = [line for line in required if "extra ==" in line and line.startswith("mlx")]
    assert len(backends) == 2
    assert all("sys_platform == 'linux'" in line.replace('"', "'") for line in backends)


_OF_LATER_PYTHONS = ("compression",)
"""Modules of standard libraries that may be newer than this one."""


def test_every_import_is_of_a_dependency() -> None:
    """Of a declared one, or of one that such a one declares; not of what was installed by hand."""
    project = PROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {distribution(line) for line in [*project["dependencies"], *extras]}
    brought = {
        distribution(line)
        for name in declared
        for line in importlib.metadata.requires(name) or ()
        if "extra ==" not in line
    }
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        name
        for name in imported_names()
        if not {normal(one) for one in providers.get(name, [name])} & (declared | brought)
    }
    assert undeclared == set()


def distribution(requirement: str) -> str:
    """The name in `Name[extra]>=1; marker`."""
    return normal(re.split(r"[^\w.-]", requirement)[0])


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_names() -> set[str]:
    """The packages from outside that the modules of mlxd import, wherever in the file."""
    names: set[str] = set()
    for source in sources():
        for plain in source.nodes(ast.Import):
            names |= {alias.name.partition(".")[0] for alias in plain.names}
        for node in source.nodes(ast.ImportFrom):
            if node.module is not None and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"mlxd", *_OF_LATER_PYTHONS}


def test_the_backends_exclude_each_other() -> None:
    """Both wheels own the same library file: a resolver that knows conflicts refuses the pair."""
    assert PROJECT["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "cuda13"}]]


def test_both_backends_are_of_the_pinned_engine() -> None:
    (engine,) = [pin for pin in PROJECT["project"]["dependencies"] if pin.startswith("mlx==")]
    version = engine.partition("==")[2]
    extras = PROJECT["project"]["optional-dependencies"]
    for name in ("cpu", "cuda13"):
        assert extras[name] == [f"mlx[{name}]=={version}; sys_platform == 'linux'"]


def test_the_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "--version", **environment(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told["mlxd"] == __version__
    assert f"mlx=={told['mlx']}" in PROJECT["project"]["dependencies"]


def test_the_commented_policies_are_written_and_valid(installed: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path)
    written = run(installed, "policy", "init", **variables)
    assert written.returncode == 0, written.stderr
    folder = tmp_path / ".config" / "mlxd" / "policies"
    assert {file.stem for file in folder.glob("*.yaml")} == set(KINDS)
    assert {file.name for file in folder.iterdir() if file.is_dir()} == {"schema", "tests"}
    checked = run(installed, "policy", "check", **variables)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith(f"{folder}: valid\n")


@pytest.mark.slow
def test_it_serves(installed: Path, tmp_path: Path) -> None:
    with served(installed, tmp_path) as http:
        assert http.get("/livez").text.strip() == "ok"
        assert http.get("/api/version").json()["mlxd"] == __version__
        assert http.get("/health").json()["policy"]["folder"] == ""
        (guide,) = http.get("/api/tags").json()["models"]
        assert (guide["name"], guide.get("unavailable")) == ("mlxd-guide:latest", None)
        check_a_token(http)


def test_a_start_without_a_backend_names_the_extra(installed: Path, tmp_path: Path) -> None:
    """`mlx` as it comes without its library's wheel: the package is there, lib/libmlx.* is not."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    variables = environment(tmp_path, PYTHONPATH=str(tmp_path))
    done = run(installed, "serve", "--state", str(tmp_path / "state"), **variables)
    assert done.returncode == 1
    assert done.stdout == ""
    if sys.platform == "darwin":
        assert "pip install mlxd" in done.stderr
    else:
        assert "pip install 'mlxd[cpu]'" in done.stderr
        assert "pip install 'mlxd[cuda13]'" in done.stderr
        assert "not both" in done.stderr
