"""A hub with one small model, and the process that pulls from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub, hub
from tests.support.pulling import Pulling, safetensors

REPO = "org/small"


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Hub]:
    """It has `org/small`: a config, weights of some 300 kB, and files that no model needs."""
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "model.safetensors").write_bytes(safetensors(300_000))
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "README.md").write_text("# words")
    with hub() as running:
        running.add(REPO, folder)
        yield running


@pytest.fixture
def pulling(remote: Hub, tmp_path: Path) -> Pulling:
    return Pulling(remote, tmp_path / "models")
