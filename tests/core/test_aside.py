"""What is not for this version: set aside, taken back, and never in anybody's way."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from mlxd.core import aside


def decoder(version: int):
    def decode(content: bytes) -> str:
        said = json.loads(content)
        aside.check_version(said["schema"], version)
        return str(said["text"])

    return decode


def read(file: Path, version: int = 1) -> str | None:
    return aside.read(file, version, decoder(version), most=1000)


def written(version: object, text: str) -> str:
    return json.dumps({"schema": version, "text": text})


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_is_of_this_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(written(1, "x"))
    assert read(tmp_path / "a") == "x"
    assert read(tmp_path / "none") is None
    assert names(tmp_path) == ["a"]


def test_each_version_finds_what_it_knew_before_another_one_ran(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text(written(2, "newer"))
    assert read(file, 1) is None
    file.write_text(written(1, "older"))
    assert read(file, 2) == "newer"
    assert read(file, 1) == "older"
    assert read(file, 2) == "newer"
    assert names(tmp_path) == ["a", "a.set-aside-v1"]


@pytest.mark.parametrize("version", [True, "1", None, -1, 1.0, 10**9])
def test_what_says_no_version_is_of_none(tmp_path: Path, version: object) -> None:
    (tmp_path / "a").write_text(written(version, "x"))
    assert read(tmp_path / "a") is None
    assert names(tmp_path) == ["a.set-aside-1"]


def test_of_what_cannot_be_read_the_latest_are_kept_and_every_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "in it").touch()
    assert read(tmp_path / "a") is None
    for number in range(2 * aside.KEPT):
        (tmp_path / "a").write_text(f"{number}")
        assert read(tmp_path / "a") is None
    assert len(names(tmp_path)) == aside.KEPT
    assert (tmp_path / "a.set-aside-1" / "in it").exists()
    kept = {path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert kept == {str(number) for number in range(aside.KEPT + 1, 2 * aside.KEPT)}


def test_where_only_folders_lie_none_is_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(aside.KEPT + 1):
        (tmp_path / "a").mkdir()
        assert read(tmp_path / "a") is None
    assert len(names(tmp_path)) == aside.KEPT + 1
    assert "a cannot be set aside" in caplog.text


def test_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_text(written(2, "x"))
    read(tmp_path / "a")
    (tmp_path / "b").write_text("{")
    read(tmp_path / "b")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    newer, damaged = aside.told([tmp_path, tmp_path / "none"])
    assert "version 2 takes" in newer
    assert "b was set aside, since it could not be read" in damaged


def test_many_are_told_of_in_few_words(tmp_path: Path) -> None:
    for number in range(1, 30):
        (tmp_path / f"a.set-aside-{number}").touch()
    assert len(aside.told([tmp_path])) == 11
    assert aside.told([tmp_path])[-1] == "19 more lie aside in the state folder"


def test_what_could_not_be_read_just_then_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def gone(file: Path, most: int) -> bytes:
        raise OSError(5, "Input/output error")

    (tmp_path / "a").write_text(written(1, "x"))
    with monkeypatch.context() as broken:
        broken.setattr("mlxd.core.durable.read", gone)
        assert read(tmp_path / "a") is None
    assert read(tmp_path / "a.set-aside-1") == "x"


def test_a_link_whose_disk_is_not_there_yet_is_left(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tmp_path / "not mounted")
    aside.clear_for_folder(tmp_path / "models")
    assert names(tmp_path) == ["models"]
    (tmp_path / "kernels").touch()
    aside.clear_for_folder(tmp_path / "kernels")
    assert names(tmp_path) == ["kernels.set-aside-1", "models"]
