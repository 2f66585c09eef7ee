"""Models of uploaded files: all of one, or nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mlxd.control.blobs import Blobs
from mlxd.control.checksums import recorded
from mlxd.control.created import CreatedModels
from mlxd.control.model_files import read_card
from mlxd.core.clock import SystemClock
from mlxd.core.errors import InvalidRequest
from tests.control.test_model_files import write_model

Files = list[tuple[str, str]]


@pytest.fixture
def created(tmp_path: Path) -> CreatedModels:
    return CreatedModels(tmp_path / "created", Blobs(tmp_path / "blobs", SystemClock()))


@pytest.fixture
def files(tmp_path: Path, created: CreatedModels) -> Files:
    """Of a model, uploaded."""
    source = write_model(tmp_path / "source", files={"tokenizer.json": "{}"})
    (tmp_path / "blobs").mkdir()
    found: Files = []
    for file in sorted(source.iterdir()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (tmp_path / "blobs" / f"sha256-{digest}").write_bytes(file.read_bytes())
        found.append((file.name, digest))
    return found


def folders(created: CreatedModels) -> list[str]:
    return sorted(
        str(file.parent.relative_to(created.folder)) for file in created.folder.rglob("config.json")
    )


def test_it_is_there_as_a_whole_and_knows_its_checksums(
    created: CreatedModels, files: Files
) -> None:
    created.build("org/mine:v1", files)
    folder = created.folder / "org" / "mine:v1"
    assert not read_card(folder, "mine").unavailable
    assert recorded(folder) == dict(files)
    assert created.holds(str(folder))
    assert folders(created) == ["org/mine:v1"]


def test_another_one_takes_its_place(created: CreatedModels, files: Files) -> None:
    created.build("mine:latest", files)
    old = created.folder / "mine"
    (old / "of-the-old-one").touch()
    created.build("Mine", files, str(old))
    assert folders(created) == ["Mine"]
    assert not list(created.folder.rglob("of-the-old-one"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files[1:], "it has no config.json"),
        (lambda files: [f for f in files if f[0] != "model.safetensors"], "no model"),
        (lambda files: [*files, ("more.txt", "0" * 64)], f'blob "sha256:{"0" * 64}" not found'),
    ],
)
def test_what_is_no_model_leaves_nothing_and_spares_the_old_one(
    created: CreatedModels, files: Files, change, words: str
) -> None:
    created.build("mine", files)
    with pytest.raises(InvalidRequest, match=words):
        created.build("mine", change(files), str(created.folder / "mine"))
    assert folders(created) == ["mine"]


def test_one_that_cannot_take_its_place_spares_the_old_one(
    created: CreatedModels, files: Files
) -> None:
    created.build("org/mine", files)
    (created.folder / "other").touch()
    with pytest.raises(OSError, match="other"):
        created.build("other/mine", files, str(created.folder / "org" / "mine"))
    assert folders(created) == ["org/mine"]
    (created.folder / "other").unlink()
    created.build("other/mine", files, str(created.folder / "org" / "mine"))
    assert folders(created) == ["other/mine"]
    assert not (created.folder / "org").exists()


@pytest.mark.parametrize("name", ["a/b/c", "mine/inner"])
def test_a_scan_must_find_it(created: CreatedModels, files: Files, name: str) -> None:
    created.build("mine", files)
    with pytest.raises(InvalidRequest, match="ORGANISATION/NAME"):
        created.build(name, files)
    assert folders(created) == ["mine"]


def test_what_was_left_half_made_goes(created: CreatedModels, files: Files) -> None:
    created.build("mine", files)
    (created.folder / ".partial" / "x").mkdir(parents=True)
    (created.folder / ".going" / "y").mkdir(parents=True)
    created.tidy()
    assert sorted(path.name for path in created.folder.iterdir()) == ["mine"]
