"""A folder that cannot be loaded says why, and not where it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxd.worker.refusal import LoadError
from tests.support.model_maker import HYBRID, UNMERGEABLE, Shape, make_model
from tests.worker.conftest import MakeModel

pytestmark = pytest.mark.mlx


def change(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_architecture(folder: Path) -> None:
    change(folder, model_type="no_such")


def missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:1000])


def other_size(folder: Path) -> None:
    change(folder, hidden_size=128)


def missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 5}')


def own_code(folder: Path) -> None:
    change(folder, model_file="evil.py")
    (folder / "evil.py").write_text("raise SystemExit(42)")


def missing_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


HARMS = [
    broken_config,
    unknown_architecture,
    missing_weights,
    cut_weights,
    other_size,
    missing_tokenizer,
    broken_tokenizer,
    own_code,
    missing_folder,
]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_folder_that_cannot_be_loaded_says_why(tmp_path: Path, harm):
    from mlxd.worker.loading import load

    folder = make_model(tmp_path / "secret-place" / "m", Shape())
    harm(folder)
    with pytest.raises(LoadError) as caught:
        load(folder)
    reason = str(caught.value)
    assert str(tmp_path) not in reason
    assert "secret-place" not in reason
    assert "Traceback" not in reason
    assert len(reason) > 20


def test_what_a_model_is_found_to_be(model_of: MakeModel):
    from mlxd.worker.loading import load

    loaded = load(model_of(Shape()))
    assert (loaded.vocabulary, loaded.width, loaded.batchable) == (512, 512, True)
    assert not load(model_of(replace(UNMERGEABLE, spread=3.0))).batchable
    assert load(model_of(replace(HYBRID, spread=3.0))).batchable
