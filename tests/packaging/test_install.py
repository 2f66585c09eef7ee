"""The wheel, installed into an empty environment by each program that people use for that."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.installed import check_a_token, environment, served

pytestmark = [pytest.mark.slow, pytest.mark.mlx, pytest.mark.timeout(900)]

EXTRA = "[cpu]" if sys.platform == "linux" else ""


def caches() -> dict[str, str]:
    """Where this user's installers keep what they have fetched, and where they fetch from."""
    kept = ("PIP_", "UV_", "SSL_", "REQUESTS_", "HTTP", "http", "NO_PROXY", "no_proxy")
    cache = Path.home() / ".cache"
    found = {"PIP_CACHE_DIR": str(cache / "pip"), "UV_CACHE_DIR": str(cache / "uv")}
    return found | {name: value for name, value in os.environ.items() if name.startswith(kept)}


def run(command: Sequence[object], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(one) for one in command], env=variables, cwd=variables["HOME"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def made(folder: Path) -> Path:
    """The programs of a fresh environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin"


def installer(name: str, folder: Path, variables: dict[str, str]) -> Path:
    """A program from the package index; skips where none can be had."""
    programs = made(folder)
    done = run([programs / "python", "-m", "pip", "install", "--quiet", name], **variables)
    if done.returncode:
        pytest.skip(f"no {name}: {done.stderr[-200:]}")
    return programs / name


def check(done: subprocess.CompletedProcess[str], mlxd: Path, home: Path) -> None:
    assert done.returncode == 0, done.stderr
    with served(mlxd, home) as http:
        check_a_token(http)


def test_pip(wheel: Path, tmp_path: Path) -> None:
    programs = made(tmp_path / "env")
    variables = environment(tmp_path, **caches())
    command = [programs / "python", "-m", "pip", "install", "--quiet", f"{wheel}{EXTRA}"]
    check(run(command, **variables), programs / "mlxd", tmp_path)


def test_pipx(wheel: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path, **caches())
    pipx = installer("pipx", tmp_path / "tools", variables)
    command = [pipx, "install", "--python", sys.executable, f"{wheel}{EXTRA}"]
    check(run(command, **variables), tmp_path / ".local" / "bin" / "mlxd", tmp_path)


def test_uv(wheel: Path, tmp_path: Path) -> None:
    variables = environment(tmp_path, **caches())
    uv = installer("uv", tmp_path / "tools", variables)
    command = [uv, "tool", "install", "--python", sys.executable, f"mlxd{EXTRA} @ {wheel.as_uri()}"]
    check(run(command, **variables), tmp_path / ".local" / "bin" / "mlxd", tmp_path)
