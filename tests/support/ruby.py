"""A formula in a real Ruby: WebAssembly, so that no Ruby has to be installed."""

from __future__ import annotations

import contextlib
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
    words = ["node", "--no-warnings", "--liftoff-only", str(_HERE / "formula.mjs"),
             str(formula.absolute()), str(_HERE / "formula.rb")]  # fmt: skip
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
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    (made / "package.json").write_text('{"private": true}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *_PACKAGES]
    problem = _problem(install, made)
    if not problem:
        with contextlib.suppress(OSError):  # another run was quicker
            made.rename(folder)
    shutil.rmtree(made, ignore_errors=True)
    if not folder.exists():
        pytest.skip(f"the packages cannot be had: {problem}")
    return folder


def _problem(install: list[str], folder: Path) -> str:
    """Why it failed; empty: it did not."""
    try:
        done = subprocess.run(
            install, cwd=folder, check=False, capture_output=True, text=True, timeout=100
        )
    except subprocess.TimeoutExpired as error:
        return str(error)
    return done.stderr[-300:] if done.returncode else ""
