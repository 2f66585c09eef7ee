"""Compiled kernels outlive the engine that compiled them; half of one does not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mlxd.control import kernels as module
from mlxd.control.kernels import Kernels
from tests.support.few_files import no_files


@pytest.fixture
def kernels(tmp_path: Path) -> Kernels:
    return Kernels(tmp_path / "kernels")


def engine(folder: Path, kernels: Kernels) -> Path:
    """Its own folder of kernels."""
    folder.mkdir()
    kernels.lend(folder)
    own = kernels.own(folder)
    own.mkdir(exist_ok=True)
    return own


def compiled(own: Path, name: str, text: str, seconds_ago: float = 60.0) -> None:
    file = own / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    then = time.time() - seconds_ago
    os.utime(file, (then, then))


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_where_no_file_is_left_there_is_a_folder_of_them_all_the_same(tmp_path: Path):
    with no_files():
        assert Kernels(tmp_path) != Kernels(tmp_path / "others")


def test_the_next_engine_finds_what_the_last_one_compiled(tmp_path: Path, kernels: Kernels):
    first = engine(tmp_path / "a", kernels)
    compiled(first, "add.ptx", "add", 0.0)
    compiled(first, "deep/mul.ptx", "mul", 0.0)
    kernels.keep(tmp_path / "a", ended_well=True)
    second = engine(tmp_path / "b", kernels)
    assert names(second) == ["add.ptx", "deep/mul.ptx"]
    assert (second / "add.ptx").read_text() == "add"


def test_of_a_killed_engine_only_what_must_be_whole_is_kept(tmp_path: Path, kernels: Kernels):
    own = engine(tmp_path / "a", kernels)
    compiled(own, "old.ptx", "old")
    compiled(own, "old.txt", "names")
    compiled(own, "half.ptx", "ha", 0.0)
    compiled(own, "pair.ptx", "pair", 60.0)
    compiled(own, "pair.txt", "na", 0.5)
    kernels.keep(tmp_path / "a", ended_well=False)
    assert names(engine(tmp_path / "b", kernels)) == ["old.ptx", "old.txt"]


def test_what_an_engine_does_to_its_own_copy_is_nobody_elses(tmp_path: Path, kernels: Kernels):
    compiled(engine(tmp_path / "a", kernels), "add.ptx", "add")
    kernels.keep(tmp_path / "a", ended_well=True)
    (engine(tmp_path / "b", kernels) / "add.ptx").write_text("spoilt")
    kernels.keep(tmp_path / "b", ended_well=True)
    assert (engine(tmp_path / "c", kernels) / "add.ptx").read_text() == "add"


def test_there_is_an_end_to_what_is_kept(
    tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MOST_BYTES", 25)
    own = engine(tmp_path / "a", kernels)
    for n in range(5):
        compiled(own, f"{n}.ptx", "x" * 10)
    kernels.keep(tmp_path / "a", ended_well=True)
    assert len(names(engine(tmp_path / "b", kernels))) == 2


def test_without_any_or_without_a_disk_nothing_happens(tmp_path: Path):
    kernels = Kernels(tmp_path / "file" / "kernels")
    (tmp_path / "file").write_text("in the way")
    own = engine(tmp_path / "a", kernels)
    compiled(own, "add.ptx", "add")
    kernels.keep(tmp_path / "a", ended_well=True)
    assert names(engine(tmp_path / "b", kernels)) == []


def test_those_of_another_version_are_removed(tmp_path: Path, kernels: Kernels) -> None:
    own = engine(tmp_path / "a", kernels)
    compiled(own, "add.ptx", "add")
    kernels.keep(tmp_path / "a", ended_well=True)
    (tmp_path / "kernels" / "0.1.2").mkdir()
    (tmp_path / "kernels" / "0.1.2" / "old.ptx").touch()
    kernels.tidy()
    assert [Path(name).name for name in names(tmp_path / "kernels")] == ["add.ptx"]
    Kernels(tmp_path / "nowhere").tidy()


def test_a_version_that_is_just_being_installed_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip has made its folder, and written nothing into it."""
    before = Kernels(tmp_path)
    monkeypatch.setattr(module, "version", lambda name: None)
    assert Kernels(tmp_path) != before
