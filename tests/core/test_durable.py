"""What is written is there after a power cut: whole, and under its name."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from mlxd.core import durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was handed to the disk, in order."""
    found: list[str] = []
    monkeypatch.setattr(durable, "_FULL", None)
    monkeypatch.setattr(
        os, "fsync", lambda open: found.append(str(Path(f"/proc/self/fd/{open}").readlink()))
    )
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no /proc")


@needs_proc
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_counts(
    tmp_path: Path, synced: list[str]
) -> None:
    durable.write(tmp_path / "a", b"one")
    content, folder = synced
    assert Path(content).name.startswith(".a.")
    assert Path(folder) == tmp_path
    assert (tmp_path / "a").read_bytes() == b"one"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@needs_proc
def test_an_added_line_is_on_the_disk(tmp_path: Path, synced: list[str]) -> None:
    durable.append(tmp_path / "a", b"one")
    assert [Path(one) for one in synced] == [tmp_path / "a", tmp_path]
    durable.append(tmp_path / "a", b"two")
    assert [Path(one) for one in synced[2:]] == [tmp_path / "a"]


def test_a_line_that_was_cut_off_is_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"cut o")
    durable.append(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes().splitlines() == [b"cut o", b"whole"]


def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.write(tmp_path / "a", b"old")

    def broken(descriptor: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(durable, "_sync", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        durable.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_what_is_read_is_a_file_of_a_bounded_size(tmp_path: Path) -> None:
    """A pipe would make its reader wait for a writer."""
    (tmp_path / "a").write_bytes(b"12345")
    assert durable.read(tmp_path / "a", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for strange, most in ((tmp_path / "a", 4), (tmp_path / "pipe", 9), (tmp_path, 9)):
        with pytest.raises(ValueError, match="it "):
            durable.read(strange, most)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {"a", ".a", ".a.b", "a.1", ".lock", ".vimrc.1", ".bash_history.20261126"}
    for name in {".a.json.12-345", ".a.json.12", *kept}:
        (tmp_path / name).touch()
    (tmp_path / ".b.1").mkdir()
    durable.tidy(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == kept | {".b.1"}
    durable.tidy(tmp_path / "none")


def test_a_link_in_the_temporarys_place_is_not_followed(tmp_path: Path) -> None:
    """Who may write to the folder could have laid it there."""
    other = tmp_path / "other"
    other.write_text("theirs")
    name = f".file.json.{os.getpid()}-{threading.get_ident()}"
    (tmp_path / name).symlink_to(other)
    durable.write(tmp_path / "file.json", b"ours")
    assert other.read_text() == "theirs"
    assert (tmp_path / "file.json").read_text() == "ours"
    assert not (tmp_path / "file.json").is_symlink()


def test_a_pipe_in_a_folders_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    durable.remove_tree(tmp_path / "a")
    durable.remove_tree(tmp_path / "none")
    (tmp_path / "b" / "c").mkdir(parents=True)
    os.mkfifo(tmp_path / "b" / "c" / "d")
    durable.remove_tree(tmp_path / "b")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
