"""A formula in a real Ruby: WebAssembly, so that no Ruby has to be installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_PACKAGES = ("@ruby/4.0-wasm-wasi@2.10.1", "@ruby/wasm-wasi@2.10.1")
_HERE = Path(__file__).parent


class BadRuby(Exception):
    """What Ruby says of it."""


def run_formula(formula: Path) -> dict[str, Any]:
    """What it declares and would do, by tests/support/formula.rb. Raises BadRuby."""
    words = ["node", "--no-warnings", str(_HERE / "formula.mjs"), str(formula.absolute()),
             str(_HERE / "formula.rb")]  # fmt: skip
    done = subprocess.run(
        words, cwd=_packages(), check=False, capture_output=True, text=True, timeout=100
    )
    if done.returncode:
        raise BadRuby(done.stderr)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _packages() -> Path:
    """Where they are installed; once for a machine, each run after that finds them."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = Path(tempfile.gettempdir()) / f"mlxd-tests-ruby-2.10.1-{os.getuid()}"
    if (folder / "package.json").exists():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        Path(name, "package.json").write_text('{"private": true}')
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *_PACKAGES]
        done = subprocess.run(
            install, cwd=name, check=False, capture_output=True, text=True, timeout=100
        )
        if done.returncode:
            pytest.skip(f"the packages cannot be had: {done.stderr[-300:]}")
        _keep(Path(name), folder)
    return folder


def _keep(made: Path, folder: Path) -> None:
    """As a whole, and once: another run may have been quicker."""
    whole = made.with_name(f"{folder.name}-{os.getpid()}")
    shutil.copytree(made, whole)
    try:
        whole.rename(folder)
    except OSError:
        shutil.rmtree(whole)
