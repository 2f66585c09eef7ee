"""Where models are found: plain folders, LM Studio's, a Hugging Face cache."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from mlxd.control.layouts import Place, models_under
from mlxd.control.model_files import read_card
from mlxd.control.reading import OutOfFiles
from tests.control.test_model_files import write_model


def hub_cache(root: Path, repository: str, revisions: dict[str, int], main: str | None) -> Path:
    """As huggingface_hub keeps one: files are links to blobs. `revisions`: each with its time."""
    folder = root / f"models--{repository.replace('/', '--')}"
    for revision, time in revisions.items():
        snapshot = write_model(folder / "snapshots" / revision)
        (folder / "blobs").mkdir(exist_ok=True)
        for file in sorted(snapshot.iterdir()):
            blob = folder / "blobs" / f"{revision}-{file.name}"
            file.rename(blob)
            file.symlink_to(Path("..", "..", "blobs", blob.name))
        os.utime(snapshot, (time, time))
    if main is not None:
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(main)
    return folder


def found(root: Path) -> dict[str, Path]:
    return {place.name: place.folder for place in models_under(root) if not place.earlier}


@pytest.mark.parametrize(
    ("main", "counts"),
    [
        ("old", "old"),
        ("old\n", "old"),
        ("gone", "new"),
        (None, "new"),
        ("../elsewhere", "new"),
        ("old/../../elsewhere", "new"),
        ("", "new"),
        (".", "new"),
    ],
)
def test_of_a_hubs_cache_the_revision_counts_that_main_names(
    tmp_path: Path, main: str | None, counts: str
) -> None:
    root = tmp_path / "hub"
    write_model(root / "models--org--A-Model-4bit" / "elsewhere")
    folder = hub_cache(root, "org/A-Model-4bit", {"old": 1000, "new": 2000}, main)
    assert found(root) == {"org/A-Model-4bit": folder / "snapshots" / counts}
    card = read_card(folder / "snapshots" / counts, "m")
    assert (card.unavailable, card.parameters) == ("", 32)


def test_other_things_in_a_cache_are_no_models(tmp_path: Path) -> None:
    hub_cache(tmp_path, "gpt2", {"only": 1}, None)
    for name in ("datasets--org--data/snapshots/x", "models--org--tokens/snapshots/x", ".locks/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "tokenizer.json").write_text("{}")
    (tmp_path / "models--org--begun" / "blobs").mkdir(parents=True)
    assert set(found(tmp_path)) == {"gpt2"}


def test_a_dangling_blob_is_said_and_its_neighbours_are_found(tmp_path: Path) -> None:
    good = hub_cache(tmp_path, "org/good", {"r": 1}, "r")
    bad = hub_cache(tmp_path, "org/bad", {"r": 1}, "r")
    (bad / "blobs" / "r-model.safetensors").unlink()
    assert set(found(tmp_path)) == {"org/good", "org/bad"}
    assert not read_card(good / "snapshots" / "r", "m").unavailable
    why = read_card(bad / "snapshots" / "r", "m").unavailable
    assert why == "its model.safetensors cannot be read: it is a link that leads nowhere"


@pytest.mark.parametrize("inside", [".lmstudio/models", ".cache/lm-studio/models"])
def test_lm_studios_folders_are_organisations_with_models(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    folder = write_model(root / "mlx-community" / "A-Model-4bit")
    (place,) = models_under(root)
    assert place == Place("mlx-community/A-Model-4bit", folder, "lmstudio", root)


def test_a_pipeline_for_pictures_is_one_thing_and_not_its_parts(tmp_path: Path) -> None:
    write_model(tmp_path / "diffusion" / "unet")
    (tmp_path / "diffusion" / "model_index.json").write_text("{}")
    assert set(found(tmp_path)) == {"diffusion"}


def test_nothing_is_written(tmp_path: Path) -> None:
    hub_cache(tmp_path, "org/m", {"r": 1}, "r")
    before = sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*"))
    for place in models_under(tmp_path):
        read_card(place.folder, place.name)
    assert sorted((path, path.lstat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_whatever_cannot_be_opened_for_want_of_files_nothing_is_told_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a model were gone for a moment, or another revision of it were served."""
    hub_cache(tmp_path, "a/cached", {"old": 1, "new": 2}, "old")
    write_model(tmp_path / "plain")
    write_model(tmp_path / "organisation" / "inner")
    for refused in itertools.count():
        opens = itertools.count()
        with monkeypatch.context() as patch:
            for name in ("open", "scandir"):
                patch.setattr(os, name, _until(refused, opens, getattr(os, name)))
            if len(places := _told(tmp_path)) == 3:
                break
            assert places == [], "all or nothing"
    assert refused >= 8


def _until(refused: int, opens: itertools.count[int], call: Any) -> Any:
    """Fails once, when so many others have been through."""

    def counted(*arguments: Any) -> Any:
        if next(opens) == refused:
            raise OSError(errno.EMFILE, "Too many open files")
        return call(*arguments)

    return counted


def _told(root: Path) -> list[str]:
    try:
        return [place.name for place in models_under(root) if not place.earlier]
    except OutOfFiles:
        return []
